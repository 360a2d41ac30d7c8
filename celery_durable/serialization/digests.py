"""Digests of a step's arguments: what a replay compares to see whether the body still does the same.

A digest depends on values alone: not on memory addresses, hash randomisation, the order of mappings or sets,
nor on the name and module of a dataclass, model, namedtuple or Enum (they can be renamed while runs are in
flight); fields equal to a plain default are left out (a new field with a default changes no digest). It tells
`1`, `1.0` and `True` apart, and a list from a tuple: arguments that are results of former steps are decoded
forms, which have the same digest every time. What cannot be lowered, such as a database session, counts with
its type's name only.
"""

from __future__ import annotations

import json
import re
from enum import Flag
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from celery_durable.serialization.leaves import lower_int, lower_str
from celery_durable.serialization.lowering import Lowering, is_plain
from celery_durable.serialization.names import module_of
from celery_durable.serialization.records import shape_of_fields, simple_defaults
from celery_durable.serialization.refusals import Refused
from celery_durable.serialization.shapes import ANYTHING, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from celery_durable.serialization.records import RecordKind

_MAX_RENDERING = 256
_ARGUMENT = 1  # the depth of an argument, in the mapping of all
_LONGEST_BYTES = 1024  # longer ones count with a hash of theirs
_canonical_text = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, sort_keys=True, separators=(",", ":")
).encode
_OPAQUE = re.compile(r'\{"~opaque":"([^"]*)"\}')


def digest(arguments: Mapping[str, object]) -> tuple[bytes, str]:
    """Digest the arguments of a call; never raises.

    Args:
        arguments: By parameter name; their order does not matter.

    Returns:
        16 bytes, equal for equal arguments in every process, and a readable form of at most 256 characters.
    """
    tree = arguments if is_plain(arguments) else _CANONICAL.tree(dict(arguments))
    text = _canonical_text(tree)
    readable = text if "~opaque" not in text else _OPAQUE.sub(r"<\1>", text)
    if len(readable) > _MAX_RENDERING:
        readable = readable[: _MAX_RENDERING - 1] + "…"
    return blake2b(text.encode(), digest_size=16).digest(), readable


class _Canonical(Lowering):
    """Lowering to one tree for equal values, with the type's name in place of what cannot be lowered."""

    def tree(self, value: Any, shape: Shape = ANYTHING, depth: int = 0) -> object:
        try:
            if type(value) in {bytes, bytearray} and len(value) > _LONGEST_BYTES:
                return {"~hashed": [type(value).__name__, blake2b(value, digest_size=16).hexdigest()]}
            return super().tree(value, shape, depth)
        except Exception as error:  # Refused, or what code of the user raised while the value was read
            # Too deep is most often a cycle, which is left at once: its branches double at every level.
            if isinstance(error, Refused) and error.too_deep and depth > _ARGUMENT:
                raise
            return {"~opaque": _name(type(value))}

    def _elements(self, value: Iterable[object], shape: Shape, depth: int) -> list[object]:
        elements = super()._elements(value, shape, depth)
        return sorted(elements, key=_canonical_text) if isinstance(value, (set, frozenset)) else elements

    def _pairs(self, value: Mapping[Any, object], shape: Shape, depth: int) -> list[object]:
        return sorted(super()._pairs(value, shape, depth), key=_canonical_text)

    def _enum(self, value: Any, shape: Shape) -> object:  # noqa: ARG002
        if isinstance(value, Flag):  # names of combined flags differ between Python versions
            return {"~flag": lower_int(int(value.value))}
        return {"~enum": lower_str(value._name_)}

    def _record(self, value: Any, kind: RecordKind, shape: Shape, depth: int) -> object:  # noqa: ARG002
        cls: Any = type(value)
        fields, parts = kind.read(value)
        defaults = simple_defaults(cls)
        told = {name: field for name, field in fields.items() if not _is_default(name, field, defaults)}
        told.update(parts.get("extra", {}))
        return {kind.tag: self._fields(value, told, shape_of_fields(cls), depth)}


def _is_default(name: str, value: object, defaults: Mapping[str, object]) -> bool:
    return name in defaults and type(value) is type(defaults[name]) and value == defaults[name]


def _name(kind: type) -> str:
    try:
        return f"{module_of(kind)}.{kind.__qualname__}".replace('"', "'").encode("ascii", "replace").decode()
    except Exception:  # noqa: BLE001  (a metaclass of the user)
        return "?"


_CANONICAL = _Canonical()
