"""What a return annotation says about each place inside a value: which classes it names there."""

from __future__ import annotations

import collections.abc
import types
import typing
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any

from celery_durable.serialization.hints import MISSING, field_annotations

_BUILT_BY_ABC: tuple[tuple[type, tuple[type, ...]], ...] = (
    (collections.abc.Mapping, (dict,)),
    (collections.abc.Set, (set, frozenset)),
    (collections.abc.Sequence, (list, tuple)),
    (collections.abc.Iterable, (list, tuple, set, frozenset, dict)),
)
_MAX_NESTING = 20  # of one inside the other: a recursive `type` alias has no end


@dataclass(slots=True, eq=False)
class Shape:
    """The annotation of one place of a value, a union's members merged.

    `classes` are those it names here; `item`, `items`, `keys`, `values`, `fields` lead to the places below.
    """

    annotation: object = MISSING
    classes: tuple[type, ...] = ()
    item: Shape | None = None
    items: tuple[Shape, ...] = ()
    keys: Shape | None = None
    values: Shape | None = None
    fields: dict[str, Shape] = field(default_factory=dict)

    def at(self, index: int) -> Shape:
        """Return the place of a sequence's element."""
        return self.items[index] if index < len(self.items) else self.item or ANYTHING

    def under(self, key: object) -> Shape:
        """Return the place of a dict's value."""
        found = self.fields.get(key) if self.fields and type(key) is str else None
        return found or self.values or ANYTHING

    def merge(self, other: Shape) -> None:
        """Take in another member of a union."""
        self.classes = tuple(dict.fromkeys(self.classes + other.classes))
        self.item = _either(self.item, other.item)
        self.keys = _either(self.keys, other.keys)
        self.values = _either(self.values, other.values)
        shorter, longer = sorted((self.items, other.items), key=len)
        merged = [_either(one, two) or ANYTHING for one, two in zip(shorter, longer, strict=False)]
        self.items = (*merged, *longer[len(shorter) :])
        self.fields = {**self.fields, **other.fields}


def _either(one: Shape | None, two: Shape | None) -> Shape | None:
    if one is None or two is None:
        return one or two
    both = Shape()
    if one.annotation is not MISSING and two.annotation is not MISSING:
        both.annotation = typing.Union[one.annotation, two.annotation]  # noqa: UP007  (of two values, not types)
    both.merge(one)
    both.merge(two)
    return both


ANYTHING = Shape()
"""A place nothing is known about."""


def shape_of(annotation: object) -> Shape:
    """Read an annotation; what is not understood says nothing."""
    if annotation is MISSING or isinstance(annotation, str):
        return ANYTHING
    try:
        return _cached(annotation)
    except TypeError:  # unhashable: Annotated[int, {"unit": "s"}]
        return _read(annotation, 0)


@lru_cache(maxsize=1024)
def _cached(annotation: object) -> Shape:
    return _read(annotation, 0)


def _read(hint: object, nesting: int) -> Shape:
    shape = Shape(hint)
    if nesting > _MAX_NESTING:
        return shape
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    cls = origin or hint
    if origin is typing.Literal:
        shape.classes = tuple({type(arg): None for arg in args if isinstance(arg, Enum)})
    elif members := stands_for(hint, origin, args):
        for member in members:
            shape.merge(_read(member, nesting + 1))
    elif typing.is_typeddict(cls):
        shape.classes = (dict,)
        hints = field_annotations(typing.cast("type", cls))
        shape.fields = {name: _read(below, nesting + 1) for name, below in hints.items()}
    elif isinstance(cls, type):
        shape.classes = _named_by(cls)
        _read_below(shape, cls, args, nesting + 1)
    return shape


def stands_for(hint: Any, origin: object, args: tuple[object, ...]) -> tuple[object, ...]:
    """Return a union's members, or what is behind Annotated, Required, NewType, a TypeVar or an alias."""
    if origin is typing.Union or origin is types.UnionType:
        return args
    if origin is typing.Annotated or (origin is not None and type(origin).__module__ in _TYPING):
        return args[:1]
    if isinstance(hint, typing.TypeVar):
        return (hint.__bound__,) if hint.__bound__ else hint.__constraints__
    if type(hint).__module__ in _TYPING:
        for attribute in ("__supertype__", "__value__"):  # NewType; `type X = ...`
            if hasattr(hint, attribute):
                return (getattr(hint, attribute),)
    return ()


_TYPING = frozenset({"typing", "typing_extensions"})


def _read_below(shape: Shape, cls: type, args: tuple[object, ...], nesting: int) -> None:
    places = [_read(arg, nesting) for arg in args if arg is not Ellipsis]
    if not places:
        return
    if issubclass(cls, tuple) and len(places) == len(args):
        shape.items = tuple(places)
    elif issubclass(cls, collections.abc.Mapping):
        shape.keys, shape.values = places[0], places[-1]
    elif issubclass(cls, collections.abc.Iterable):
        shape.item = places[0]


def _named_by(cls: type) -> tuple[type, ...]:
    if cls.__module__ == "collections.abc":
        return next((built for abstract, built in _BUILT_BY_ABC if issubclass(cls, abstract)), ())
    return (cls,)
