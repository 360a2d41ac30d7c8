"""From a plain tree back to the value: tags are read, classes are chosen by annotation or by name."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from enum import Enum, Flag
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import SerializationError
from celery_durable.serialization.errors import build_error
from celery_durable.serialization.leaves import RESTORE_LEAF, restore_str
from celery_durable.serialization.lowering import FACTORIES
from celery_durable.serialization.names import choose_class
from celery_durable.serialization.pydantic_models import from_json
from celery_durable.serialization.records import KINDS, kind_of, shape_of_fields
from celery_durable.serialization.shapes import ANYTHING, Shape

if TYPE_CHECKING:
    from collections.abc import Callable


def restore(tree: Any, shape: Shape = ANYTHING) -> Any:
    """Rebuild a value from its lowered tree.

    Args:
        tree: What a serializer loaded.
        shape: What the annotation says about this place.
    """
    kind = type(tree)
    if kind is list:
        return [
            item if type(item) in _LEAVES else restore(item, shape.at(index))
            for index, item in enumerate(tree)
        ]
    if kind is not dict:
        return tree
    if len(tree) == 1:
        tag, payload = next(iter(tree.items()))
        if tag[:1] == "~":
            return _restore_tag(tag, payload, shape)
    return {
        key: item if type(item) in _LEAVES else restore(item, shape.under(key)) for key, item in tree.items()
    }


_LEAVES = frozenset({str, int, float, bool, type(None)})  # they are the value already: most of all calls


def _restore_tag(tag: str, payload: Any, shape: Shape) -> object:
    leaf = RESTORE_LEAF.get(tag)
    if leaf is not None:
        return leaf(payload)
    if tag in KINDS:
        return _restore_record(tag, payload, shape)
    container = _CONTAINERS.get(tag)
    if container is None:
        raise SerializationError(
            f"The stored value has the unknown tag {tag!r}: it was written by a newer celery-durable. "
            "Upgrade this worker, or let it finish after the others are back on this version.",
            type=tag,
        )
    return container(payload, shape)


def _restore_record(tag: str, payload: list[Any], shape: Shape) -> object:
    kind = KINDS[tag]
    name, stored = payload[:2]
    names = frozenset(stored) if "~dict" not in stored else frozenset(key for key, _ in stored["~dict"])
    cls: Any = choose_class(name, shape.classes, lambda cls: kind_of(cls) is kind or kind.accepts(cls), names)
    fields = restore(stored, shape_of_fields(cls))
    parts = {part: restore(tree) for part, tree in payload[2].items()} if len(payload) > 2 else {}  # noqa: PLR2004
    return kind.build(cls, fields, parts)


def _restore_enum(payload: list[Any], shape: Shape) -> object:
    name, member = payload[0], restore_str(payload[1])
    cls: type[Enum] = choose_class(name, shape.classes, _is_enum, frozenset((member,)))
    if member not in cls.__members__:
        raise SerializationError(
            f"The stored {cls.__qualname__} has no member {member!r} any more. "
            "Keep the old name as an alias until the runs that began with it are over.",
            type=cls.__qualname__,
        )
    return cls.__members__[member]


def _restore_flag(payload: list[Any], shape: Shape) -> object:
    cls = choose_class(payload[0], shape.classes, _is_flag)
    return cls(restore(payload[1]))


def _is_enum(cls: type) -> bool:
    return issubclass(cls, Enum)


def _is_flag(cls: type) -> bool:
    return issubclass(cls, Flag)


def _elements(payload: list[Any], shape: Shape) -> list[Any]:
    return [restore(item, shape.item or ANYTHING) for item in payload]


def _pairs(payload: list[Any], shape: Shape) -> list[tuple[Any, Any]]:
    pairs = []
    for stored, tree in payload:
        key = restore(stored, shape.keys or ANYTHING)
        pairs.append((key, restore(tree, shape.under(key))))
    return pairs


def _restore_defaultdict(payload: list[Any], shape: Shape) -> object:
    name, pairs = payload
    return defaultdict(None if name is None else FACTORIES[name], _pairs(pairs, shape))


def _restore_error(payload: list[Any]) -> object:
    name, parts = payload
    return build_error(name, restore_parts(parts)) or Exception(f"{name}{parts.get('args', [])}")


def restore_parts(parts: dict[str, Any]) -> dict[str, Any]:
    """Rebuild what `lower_error` returned."""
    return {part: restore(tree) for part, tree in parts.items()}


_CONTAINERS: dict[str, Callable[[Any, Shape], object]] = {
    "~tuple": lambda payload, shape: tuple(restore(payload, shape)),
    "~set": lambda payload, shape: set(_elements(payload, shape)),
    "~frozenset": lambda payload, shape: frozenset(_elements(payload, shape)),
    "~deque": lambda payload, shape: deque(_elements(payload[1], shape), payload[0]),
    "~dict": lambda payload, shape: dict(_pairs(payload, shape)),
    "~ordereddict": lambda payload, shape: OrderedDict(_pairs(payload, shape)),
    "~counter": lambda payload, shape: Counter(dict(_pairs(payload, shape))),
    "~defaultdict": _restore_defaultdict,
    "~enum": _restore_enum,
    "~flag": _restore_flag,
    "~error": lambda payload, shape: _restore_error(payload),  # noqa: ARG005
    "~adapted": lambda payload, shape: from_json(restore(payload), shape.annotation),
}
