"""Dataclasses and namedtuples: their fields read out, and instances built from fields without `__init__`."""

from __future__ import annotations

import dataclasses
import inspect
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, Protocol

from celery_durable.serialization.hints import field_annotations
from celery_durable.serialization.pydantic_models import EMPTY, ModelKind
from celery_durable.serialization.refusals import Refused, missing_field
from celery_durable.serialization.shapes import Shape, shape_of

Parts = dict[str, dict[str, object]]
"""What a record has besides its fields, by name; only pydantic models use it."""

_BUILTIN_BASES = (str, int, float, complex, bytes, bytearray, list, tuple, dict, set, frozenset)
_NO_PARTS: Parts = {}


class RecordKind(Protocol):
    """One way in which classes have named fields."""

    @property
    def tag(self) -> str:
        """The key of its tagged trees."""

    def accepts(self, cls: type) -> bool:
        """Whether instances of the class are stored and rebuilt this way."""

    def annotations(self, cls: type) -> dict[str, object]:
        """The annotations of the fields that can be resolved."""

    def defaults(self, cls: type) -> dict[str, object]:
        """The defaults of the fields; an empty builtin container stands for a factory of it."""

    def read(self, value: Any) -> tuple[dict[str, object], Parts]:
        """Take the fields out of an instance."""

    def build(self, cls: type, fields: dict[str, Any], parts: Parts) -> object:
        """Make an instance; fields the class no longer has are dropped, new ones get their default."""


class DataclassKind:
    """Dataclasses: frozen, with slots, with fields outside `__init__`; `__post_init__` runs when built."""

    tag = "~dataclass"

    def accepts(self, cls: type) -> bool:
        """Whether it is a dataclass and nothing besides: instances of ORM classes have a hidden state."""
        return (
            dataclasses.is_dataclass(cls)
            and not issubclass(cls, (*_BUILTIN_BASES, BaseException))
            and not _is_mapped(cls)
        )

    def annotations(self, cls: type) -> dict[str, object]:
        """The annotations of the class and its bases."""
        return field_annotations(cls)

    def defaults(self, cls: type) -> dict[str, object]:
        """Defaults, and builtin containers that a factory starts empty."""
        found: dict[str, object] = {}
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                found[field.name] = field.default
            elif field.default_factory in EMPTY:
                found[field.name] = EMPTY[field.default_factory]
        return found

    def read(self, value: Any) -> tuple[dict[str, object], Parts]:
        """Take the fields that are set; refuse what building could not bring back."""
        cls: Any = type(value)
        names = _field_names(cls)
        reason = _unkept(cls, value, names)
        if reason:
            raise Refused(value, reason)
        return {name: getattr(value, name) for name in names if hasattr(value, name)}, _NO_PARTS

    def build(self, cls: Any, fields: dict[str, Any], parts: Parts) -> object:  # noqa: ARG002
        """Set the fields, run `__post_init__` for attributes that are no fields, set the fields again."""
        known = fields if fields.keys() == _names(cls) else _completed(cls, fields)
        value = object.__new__(cls)
        _set_all(value, known)
        if hasattr(cls, "__post_init__"):
            value.__post_init__()
            _set_all(value, known)
        return value


class NamedTupleKind:
    """Namedtuples of `collections` and `typing`."""

    tag = "~namedtuple"

    def accepts(self, cls: type) -> bool:
        """Whether it is a tuple with named fields."""
        names = getattr(cls, "_fields", None)
        return issubclass(cls, tuple) and type(names) is tuple and hasattr(cls, "_field_defaults")

    def annotations(self, cls: type) -> dict[str, object]:
        """The annotations of `typing.NamedTuple`."""
        return field_annotations(cls)

    def defaults(self, cls: Any) -> dict[str, object]:
        """Defaults as the namedtuple declares them."""
        return dict(cls._field_defaults)

    def read(self, value: Any) -> tuple[dict[str, object], Parts]:
        """Name the elements."""
        return dict(zip(type(value)._fields, value, strict=True)), _NO_PARTS

    def build(self, cls: Any, fields: dict[str, Any], parts: Parts) -> object:  # noqa: ARG002
        """Make the tuple without calling a `__new__` of the user."""
        for name in cls._fields:
            if name not in fields and name not in cls._field_defaults:
                raise missing_field(cls, name)
        known = {**cls._field_defaults, **fields}
        return tuple.__new__(cls, [known[name] for name in cls._fields])


KINDS: dict[str, RecordKind] = {kind.tag: kind for kind in (DataclassKind(), NamedTupleKind(), ModelKind())}
"""By tag."""

_SCALARS = (str, int, float, bool, type(None))


@lru_cache(maxsize=1024)
def kind_of(cls: type) -> RecordKind | None:
    """Return how instances of the class are stored; None if it has no such way."""
    return next((kind for kind in KINDS.values() if kind.accepts(cls)), None)


@lru_cache(maxsize=1024)
def shape_of_fields(cls: type) -> Shape:
    """Read the annotations of a record class's fields, as the places of a dict."""
    kind = kind_of(cls)
    annotations = kind.annotations(cls) if kind else {}
    return Shape(fields={name: shape_of(hint) for name, hint in annotations.items()})


@lru_cache(maxsize=1024)
def simple_defaults(cls: type) -> dict[str, object]:
    """Return the defaults that can be compared without running code of the user."""
    kind = kind_of(cls)
    defaults = kind.defaults(cls) if kind else {}
    return {name: value for name, value in defaults.items() if _is_simple(value)}


def _is_simple(value: object) -> bool:
    return (
        type(value) in _SCALARS or isinstance(value, Enum) or any(value is empty for empty in EMPTY.values())
    )


@lru_cache(maxsize=1024)
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@lru_cache(maxsize=1024)
def _names(cls: Any) -> frozenset[str]:
    return frozenset(_field_names(cls))


def _completed(cls: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Drop fields that the class no longer has, and give new ones their default."""
    known = {}
    for field in dataclasses.fields(cls):
        if field.name in fields:
            known[field.name] = fields[field.name]
        elif field.default is not dataclasses.MISSING:
            known[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            known[field.name] = field.default_factory()
        elif field.init:
            raise missing_field(cls, field.name)
    return known


@lru_cache(maxsize=1024)
def _init_only(cls: Any) -> tuple[str, ...]:
    pseudo = set(cls.__dataclass_fields__).difference(_field_names(cls))  # InitVar and ClassVar
    return tuple(name for name in inspect.signature(cls.__init__).parameters if name in pseudo)


def _unkept(cls: type, value: object, names: tuple[str, ...]) -> str:
    if _init_only(cls):
        return (
            f"the instance does not keep its InitVar {_init_only(cls)[0]!r}, so it could not be built again"
        )
    if hasattr(cls, "__post_init__"):
        return ""
    for name in getattr(value, "__dict__", {}).keys() - set(names):
        is_cached = isinstance(inspect.getattr_static(cls, name, None), cached_property)
        if not is_cached and not name.startswith("__"):
            return f"its attribute {name!r} is not a field of the dataclass and would be lost"
    return ""


def _set_all(value: object, fields: dict[str, object]) -> None:
    for name, field in fields.items():
        object.__setattr__(value, name, field)  # frozen or not


def _is_mapped(cls: type) -> bool:
    return hasattr(cls, "__mapper__")  # SQLAlchemy: a row without its session is not the same object
