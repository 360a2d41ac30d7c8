"""From a value to a plain tree of text, numbers, booleans, None, lists and dicts, with tags for all else."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime
from enum import Enum, Flag
from math import isfinite
from typing import TYPE_CHECKING, Any

from celery_durable.serialization.leaves import LARGEST_INT, LOWER_LEAF, lower_float, lower_int, lower_str
from celery_durable.serialization.names import EXACT, find_class, full_name
from celery_durable.serialization.pydantic_models import to_json
from celery_durable.serialization.records import kind_of, shape_of_fields
from celery_durable.serialization.refusals import MAX_DEPTH, Refused, index_segment, key_segment
from celery_durable.serialization.shapes import ANYTHING, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from celery_durable.serialization.records import RecordKind

FACTORIES: dict[str, type] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple, bool)}
"""The factories of a defaultdict that can be named."""

_KOMBU_KEYS = {"__type__", "__value__"}  # kombu's JSON replaces an object with exactly these keys
_SCALAR_BASES = (str, int, float, bytes, bytearray)
_NAMED_BASES: tuple[type, ...] = (dict, list, tuple, set, frozenset, datetime, date)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is its own lowered form, so that it can go to a JSON serializer as it is."""
    kind = type(value)
    if kind is str:
        plain = value.isascii() or lower_str(value) is value
    elif kind is int:
        plain = -LARGEST_INT <= value <= LARGEST_INT
    elif kind is dict:
        plain = depth < MAX_DEPTH and "__type__" not in value and _is_plain_dict(value, depth + 1)
    elif kind is list:
        plain = depth < MAX_DEPTH and all(is_plain(item, depth + 1) for item in value)
    else:
        plain = value is None or kind is bool or (kind is float and isfinite(value))
    return plain


def _is_plain_dict(value: dict[Any, object], depth: int) -> bool:
    for key, item in value.items():
        if type(key) is not str or not key.isascii() or key[:1] == "~" or not is_plain(item, depth):
            return False
    return True


class Lowering:
    """One way of lowering; `sorts_keys` says that the format loses the order of an object's keys."""

    def __init__(self, *, sorts_keys: bool = False) -> None:
        self._sorts_keys = sorts_keys
        self._containers: dict[type, Callable[[Any, Shape, int], object]] = {
            dict: self._dict,
            list: self._list,
            tuple: self._tuple,
            set: self._set,
            frozenset: self._frozenset,
            OrderedDict: self._ordered_dict,
            Counter: self._counter,
            defaultdict: self._defaultdict,
            deque: self._deque,
        }

    def tree(self, value: Any, shape: Shape = ANYTHING, depth: int = 0) -> object:
        """Lower a value; Refused with the path of the part that cannot be.

        Args:
            value: What to lower; it is not changed and shares nothing with the tree.
            shape: What the annotation says about this place.
            depth: Containers around this place.
        """
        kind = type(value)
        if kind is str:
            return value if value.isascii() else lower_str(value)
        if kind is int:
            return lower_int(value)
        if value is None or kind is bool:
            return value
        if kind is float:
            return lower_float(value)
        leaf = LOWER_LEAF.get(kind)
        if leaf is not None:
            return leaf(value)
        if depth >= MAX_DEPTH:
            raise Refused(value, too_deep=True)
        container = self._containers.get(kind) or self._special
        return container(value, shape, depth + 1)

    # --- containers ---

    def _items(self, values: Iterable[object], at: Callable[[int], Shape], depth: int) -> list[object]:
        lowered: list[object] = []
        try:
            for value in values:
                lowered.append(self.tree(value, at(len(lowered)), depth))
        except Refused as refusal:
            refusal.inside(values, index_segment(len(lowered)))
            raise
        return lowered

    def _list(self, value: list[object], shape: Shape, depth: int) -> object:
        return self._items(value, shape.at, depth)

    def _tuple(self, value: tuple[object, ...], shape: Shape, depth: int) -> object:
        return {"~tuple": self._items(value, shape.at, depth)}

    def _elements(self, value: Iterable[object], shape: Shape, depth: int) -> list[object]:
        item = shape.item or ANYTHING
        return self._items(value, lambda _: item, depth)

    def _set(self, value: set[object], shape: Shape, depth: int) -> object:
        return {"~set": self._elements(value, shape, depth)}

    def _frozenset(self, value: frozenset[object], shape: Shape, depth: int) -> object:
        return {"~frozenset": self._elements(value, shape, depth)}

    def _deque(self, value: deque[object], shape: Shape, depth: int) -> object:
        return {"~deque": [value.maxlen, self._elements(value, shape, depth)]}

    def _dict(self, value: dict[object, object], shape: Shape, depth: int) -> object:
        if _has_plain_keys(value) and not (self._sorts_keys and _is_unsorted(value)):
            return self._values(value, shape.under, value, key_segment, depth)
        return {"~dict": self._pairs(value, shape, depth)}

    def _ordered_dict(self, value: OrderedDict[object, object], shape: Shape, depth: int) -> object:
        return {"~ordereddict": self._pairs(value, shape, depth)}

    def _counter(self, value: Counter[object], shape: Shape, depth: int) -> object:
        return {"~counter": self._pairs(value, shape, depth)}

    def _defaultdict(self, value: defaultdict[object, object], shape: Shape, depth: int) -> object:
        factory: Any = value.default_factory
        name = None if factory is None else getattr(factory, "__name__", "")
        if name is not None and FACTORIES.get(name) is not factory:
            raise Refused(value, "its default_factory is not a builtin type: return dict(...) of it")
        return {"~defaultdict": [name, self._pairs(value, shape, depth)]}

    def _pairs(self, value: Mapping[Any, object], shape: Shape, depth: int) -> list[object]:
        pairs: list[object] = []
        for key, item in value.items():
            try:
                lowered = self.tree(key, shape.keys or ANYTHING, depth)
            except Refused as refusal:
                refusal.inside(value, f".keys()[{len(pairs)}]")
                raise
            try:
                pairs.append([lowered, self.tree(item, shape.under(key), depth)])
            except Refused as refusal:
                refusal.inside(value, key_segment(key))
                raise
        return pairs

    def _values(
        self,
        values: Mapping[Any, object],
        under: Callable[[object], Shape],
        owner: object,
        segment: Callable[[Any], str],
        depth: int,
    ) -> dict[str, object]:
        lowered: dict[str, object] = {}
        key = None
        try:
            for key, item in values.items():
                lowered[key] = self.tree(item, under(key), depth)
        except Refused as refusal:
            refusal.inside(owner, segment(key))
            raise
        return lowered

    # --- classes ---

    def _special(self, value: Any, shape: Shape, depth: int) -> object:
        if isinstance(value, Enum):
            return self._enum(value, shape)
        cls: Any = type(value)
        kind = kind_of(cls)
        if kind is not None:
            return self._record(value, kind, shape, depth)
        return self._as_base(value, shape, depth)

    def _enum(self, value: Any, shape: Shape) -> object:
        name = self._class_name(value, shape)
        if isinstance(value, Flag):
            return {"~flag": [name, lower_int(int(value.value))]}
        return {"~enum": [name, lower_str(value._name_)]}

    def _record(self, value: Any, kind: RecordKind, shape: Shape, depth: int) -> object:
        cls: Any = type(value)
        name = self._class_name(value, shape)
        fields, parts = kind.read(value)
        payload = [name, self._fields(value, fields, shape_of_fields(cls), depth)]
        if parts:
            payload.append(
                {part: self._fields(value, names, ANYTHING, depth) for part, names in parts.items()}
            )
        return {kind.tag: payload}

    def _fields(self, owner: object, fields: dict[str, object], shape: Shape, depth: int) -> object:
        if is_plain(fields, depth) and not self._sorts_keys:
            return fields
        if _has_plain_keys(fields) and not self._sorts_keys:
            return self._values(fields, shape.under, owner, ".{}".format, depth)
        return self.tree(dict(fields), shape, depth)

    def _class_name(self, value: object, shape: Shape) -> str:
        """Name the class so that decoding finds this one: by the annotation, or else by its module."""
        cls = type(value)
        name = full_name(cls)
        if cls in shape.classes:
            return EXACT + name
        if find_class(name) is not cls:
            raise Refused(
                value,
                "the class cannot be found again by its name: define it at the top of a module, "
                "or name it in the step's return annotation",
            )
        return name

    def _as_base(self, value: Any, shape: Shape, depth: int) -> object:
        """Lower a subclass's instance as its base: text and numbers always, others if annotated so."""
        for scalar in _SCALAR_BASES:
            if isinstance(value, scalar):
                return self.tree(_exact(value, scalar), ANYTHING, depth)
        for base in _NAMED_BASES:
            if isinstance(value, base) and base in shape.classes:
                lower: Any = LOWER_LEAF.get(base)
                return lower(value) if lower else self._containers[base](value, shape, depth)
        if any(isinstance(value, base) for base in _NAMED_BASES):
            raise Refused(value, "a subclass would come back as its base: convert it, or annotate the base")
        return {"~adapted": self.tree(to_json(value, shape.annotation), ANYTHING, depth)}


def _has_plain_keys(value: Mapping[Any, object]) -> bool:
    """Whether a dict can be an object: its keys are text, and it looks like no tag, ours or kombu's."""
    for key in value:
        if type(key) is not str or lower_str(key) is not key:
            return False
    if len(value) == 1:
        return not next(iter(value)).startswith("~")
    return value.keys() != _KOMBU_KEYS


def _is_unsorted(value: Mapping[Any, object]) -> bool:
    keys = list(value)
    return keys != sorted(keys)


def _exact(value: Any, base: type) -> object:
    if base is str:
        return str.__str__(value)
    if base is int:
        return int.__int__(value)
    if base is float:
        return float.__float__(value)
    return base(memoryview(value))
