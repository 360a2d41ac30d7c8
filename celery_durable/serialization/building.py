"""Values of a wanted type from plain JSON that somebody else wrote: a signal from a shell, from SQL, a form.

What was stored by a step describes itself and needs none of this. Here the wanted type decides alone, and
what does not fit it is an error that names the place.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections import Counter, OrderedDict, deque
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery_durable.exceptions import SerializationError
from celery_durable.serialization.hints import MISSING, field_annotations
from celery_durable.serialization.pydantic_models import from_json, knows
from celery_durable.serialization.records import kind_of
from celery_durable.serialization.refusals import index_segment, key_segment, type_name, value_path
from celery_durable.serialization.shapes import stands_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def build(value: object, annotation: object, *, where: str) -> object:
    """Make a value what it is annotated as; one that is so already is returned as it is.

    Args:
        value: Plain JSON, or a value that was stored with its type.
        annotation: The wanted type; what is not understood wants nothing.
        where: Words that begin an error's message, such as "signal 'approved'".

    Raises:
        SerializationError: A part of the value does not fit; has `where`, `path` and `type`.
    """
    try:
        return _built(value, annotation)
    except _Unfit as unfit:
        path = value_path(unfit.segments[::-1])
        raise SerializationError(
            f"{where}: {path} {unfit.reason}. It is kept with the run: "
            "once the wanted type takes it, resume the run",
            where=where,
            path=path,
            type=unfit.type,
        ) from unfit.__cause__


class _Unfit(Exception):  # noqa: N818  (a verdict, never seen by a user)
    """A part of a value is not what is wanted; each container it passes through adds its step of the path."""

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(reason)
        self.type, self.reason = type_name(type(value)), reason
        self.segments: list[str] = []  # innermost first


@contextmanager
def _at(segment: str) -> Iterator[None]:
    try:
        yield
    except _Unfit as unfit:
        unfit.segments.append(segment)
        raise


def _built(value: Any, hint: Any) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return _one_of(value, args)
    if members := stands_for(hint, origin, args):
        return _built(value, members[0]) if len(members) == 1 else _member(value, members)
    cls = origin or hint
    if typing.is_typeddict(cls):
        return _typed_dict(value, cls)
    if hint is None:
        return _known(value, type(None))
    return _instance(value, cls, args) if _says_something(cls) else value


def _says_something(cls: Any) -> bool:
    return isinstance(cls, type) and cls not in (Any, object) and not getattr(cls, "_is_protocol", False)


def _one_of(value: object, choices: tuple[object, ...]) -> object:
    for choice in choices:
        if (type(choice) is type(value) and choice == value) or (
            isinstance(choice, Enum) and choice.value == value
        ):
            return choice
    raise _Unfit(value, f"is {value!r}, and one of {', '.join(map(repr, choices))} is wanted")


def _member(value: object, members: tuple[Any, ...]) -> object:
    """Build the first member of a union that fits; one that the value is already goes before others."""
    if value is None and type(None) in members:
        return None
    wanted = [member for member in members if member is not type(None)]
    if len(wanted) == 1:
        return _built(value, wanted[0])
    for member in sorted(wanted, key=lambda one: type(value) not in (one, typing.get_origin(one))):
        with suppress(_Unfit):
            return _built(value, member)
    raise _Unfit(value, f"is of type {type_name(type(value))}, and none of {_names(members)} fits it")


def _instance(value: Any, cls: Any, args: tuple[Any, ...]) -> object:
    kind = kind_of(cls)
    if kind is not None:
        return value if isinstance(value, cls) else _record(value, cls, validates=kind.tag == "~pydantic")
    if issubclass(cls, Enum):
        return value if isinstance(value, cls) else _enum(value, cls)
    if cls in _CONTAINERS:
        return _container(value, cls, args)
    return value if isinstance(value, cls) else _leaf(value, cls)


def _leaf(value: object, cls: type) -> object:
    for source, make in _LEAVES.get(cls, ()):
        if isinstance(value, source) and not isinstance(value, bool):
            return _made(value, cls, partial(make, value))
    if cls not in _PLAIN and cls not in _LEAVES and knows(cls):
        return _made(value, cls, partial(from_json, value, cls))
    return _known(value, cls)


def _known(value: object, cls: type) -> object:
    if isinstance(value, cls):
        return value
    raise _Unfit(value, f"is of type {type_name(type(value))}, and {type_name(cls)} is wanted")


def _made(value: object, cls: type, make: Callable[[], object]) -> object:
    try:
        return make()
    except _Unfit:
        raise
    except Exception as error:
        raise _Unfit(value, f"cannot be made a {type_name(cls)}: {error}") from error


# --- classes with fields ---


def _record(value: Any, cls: type[Any], *, validates: bool) -> object:
    if validates:
        return _made(value, cls, lambda: cls.model_validate(value))
    parameters = inspect.signature(cls).parameters
    if isinstance(value, list) and issubclass(cls, tuple) and len(value) <= len(parameters):
        value = dict(zip(parameters, value, strict=False))
    required = [name for name, one in parameters.items() if one.default is one.empty]
    fields = _fields(value, cls, field_annotations(cls), required, parameters)
    return _made(value, cls, lambda: cls(**fields))


def _typed_dict(value: Any, cls: Any) -> object:
    hints = field_annotations(cls)
    return _fields(value, cls, hints, sorted(cls.__required_keys__), hints)


def _fields(
    value: Any, cls: type, hints: dict[str, Any], required: list[str], allowed: typing.Container[str]
) -> dict[str, Any]:
    _known(value, dict)
    for name in required:
        if name not in value:
            raise _Unfit(value, f"has no field {name!r}, which {type_name(cls)} requires")
    for name in value:
        if name not in allowed:
            raise _Unfit(value, f"has a field {name!r}, which {type_name(cls)} does not have")
    fields = {}
    for name, item in value.items():
        with _at(key_segment(name)):
            fields[name] = _built(item, hints.get(name, MISSING))
    return fields


def _enum(value: object, cls: type[Enum]) -> Enum:
    try:
        return cls(value)
    except ValueError:
        if isinstance(value, str) and value in cls.__members__:
            return cls[value]
    values = ", ".join(repr(member.value) for member in cls)
    raise _Unfit(value, f"is {value!r}, and a {type_name(cls)} is wanted: {values}")


# --- containers and leaves ---


def _container(value: Any, cls: type[Any], args: tuple[Any, ...]) -> object:
    sources, make = _CONTAINERS[cls]
    if not isinstance(value, sources):
        _known(value, cls)
    if isinstance(value, dict):
        key_hint, hint = args if len(args) == 2 else (MISSING, args[0] if args else MISSING)  # noqa: PLR2004
        return make(_pairs(value, key_hint, hint))
    hints = _element_hints(value, cls, args)
    items = []
    for index, item in enumerate(value):
        with _at(index_segment(index)):
            items.append(_built(item, hints[index]))
    return make(items)


def _pairs(value: dict[Any, Any], key_hint: Any, hint: Any) -> dict[Any, Any]:
    pairs = {}
    for key, item in value.items():
        with _at(key_segment(key)):
            pairs[_built(key, key_hint)] = _built(item, hint)
    return pairs


def _element_hints(value: Any, cls: type, args: tuple[Any, ...]) -> list[Any]:
    if cls is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise _Unfit(value, f"has {len(value)} elements, and {len(args)} are wanted")
        return list(args)
    return [args[0] if args else MISSING] * len(value)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 reads no Z


_Make = typing.Callable[[Any], object]
_ITERABLES = (list, tuple, set, frozenset, deque)
_CONTAINERS: dict[type, tuple[tuple[type, ...], _Make]] = {
    list: ((list,), list),
    tuple: ((list, tuple), tuple),
    set: ((list, set), set),
    frozenset: ((list, frozenset), frozenset),
    deque: ((list, deque), deque),
    dict: ((dict,), dict),
    OrderedDict: ((dict,), OrderedDict),
    Counter: ((dict,), Counter),
    collections.abc.Mapping: ((dict,), dict),
    collections.abc.MutableMapping: ((dict,), dict),
    collections.abc.Sequence: ((list, tuple), list),
    collections.abc.MutableSequence: ((list,), list),
    collections.abc.Set: ((list, set, frozenset), frozenset),
    collections.abc.MutableSet: ((list, set), set),
    collections.abc.Iterable: (_ITERABLES, list),
    collections.abc.Collection: (_ITERABLES, list),
}
_LEAVES: dict[type, tuple[tuple[type | tuple[type, ...], _Make], ...]] = {
    float: ((int, float),),
    Decimal: (((str, int), Decimal), (float, lambda value: Decimal(str(value)))),
    UUID: ((str, UUID),),
    datetime: ((str, _moment),),
    date: ((str, date.fromisoformat),),
    time: ((str, time.fromisoformat),),
    timedelta: (((int, float), lambda value: timedelta(seconds=value)),),
    Path: ((str, Path),),
}
_PLAIN = frozenset({str, int, float, bool, bytes})


def _names(hints: tuple[Any, ...]) -> str:
    return ", ".join(type_name(hint) if isinstance(hint, type) else str(hint) for hint in hints)
