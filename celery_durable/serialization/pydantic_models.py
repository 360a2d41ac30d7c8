"""Pydantic models, by their state and without validation; pydantic is looked at only where it is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

from celery_durable.exceptions import SerializationError
from celery_durable.serialization.refusals import Refused, missing_field

EMPTY: dict[object, object] = {list: [], dict: {}, set: set(), tuple: (), frozenset: frozenset()}
"""What a default factory of these types makes: the same objects every time, to be recognised."""


class ModelKind:
    """Models of pydantic 2: fields, extra and private attributes, and which fields were set."""

    tag = "~pydantic"

    def accepts(self, cls: type) -> bool:
        """Whether it is a model that is not a database table at the same time."""
        base = _base_model()
        return base is not None and issubclass(cls, base) and not hasattr(cls, "__mapper__")

    def annotations(self, cls: Any) -> dict[str, object]:
        """The annotations as the model knows them, type parameters filled in."""
        return {name: info.annotation for name, info in cls.model_fields.items()}

    def defaults(self, cls: Any) -> dict[str, object]:
        """Defaults, and builtin containers that a factory starts empty."""
        found: dict[str, object] = {}
        for name, info in cls.model_fields.items():
            if info.default_factory in EMPTY:
                found[name] = EMPTY[info.default_factory]
            elif not info.is_required() and info.default_factory is None:
                found[name] = info.default
        return found

    def read(self, value: Any) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
        """Take what pickling the model would take."""
        base = _base_model()
        state = base.__getstate__(value)
        attributes, was_set = state["__dict__"], state["__pydantic_fields_set__"]
        fields = {name: attributes[name] for name in type(value).model_fields if name in attributes}
        parts: dict[str, dict[str, object]] = {}
        if was_set != fields.keys():
            parts["unset"] = dict.fromkeys(sorted(fields.keys() - was_set), None)
        for name, key in (("extra", "__pydantic_extra__"), ("private", "__pydantic_private__")):
            if state[key]:
                parts[name] = dict(state[key])
        return fields, parts

    def build(self, cls: Any, fields: dict[str, Any], parts: dict[str, dict[str, object]]) -> object:
        """Give a new instance the stored state, as unpickling would."""
        known: dict[str, object] = {}
        unset = set(parts.get("unset", ()))
        for name, info in cls.model_fields.items():
            if name in fields:
                known[name] = fields[name]
            else:
                known[name] = _default(cls, name, info, known)
                unset.add(name)
        extra: dict[str, object] | None = parts.get("extra", {})
        if cls.model_config.get("extra") != "allow":
            extra = None
        value = cls.__new__(cls)
        state = {
            "__dict__": known,
            "__pydantic_fields_set__": {*known, *(extra or ())} - unset,
            "__pydantic_extra__": extra,
            "__pydantic_private__": _private(cls, parts.get("private", {})),
        }
        _base_model().__setstate__(value, state)
        return value


def to_json(value: object, annotation: object) -> object:
    """Lower a value that only pydantic understands (an URL, a pattern) by the annotation of its place.

    The plain form is accepted only if pydantic reads an equal value of the same type from it: a secret that
    is masked in JSON is refused.
    """
    adapter = _adapter(annotation)
    # A dataclass got here because its instances cannot be rebuilt, which pydantic does not know.
    if adapter is None or is_dataclass(value) or hasattr(value, "__mapper__") or isinstance(value, Iterator):
        raise Refused(value)
    try:
        tree = adapter.dump_python(value, mode="json")
        again = adapter.validate_python(tree)
    except Exception as error:
        raise Refused(value, f"pydantic: {type(error).__name__}") from error
    if type(again) is not type(value) or again != value:
        raise Refused(value, "pydantic does not read the same value back from its JSON form")
    return tree


def from_json(tree: object, annotation: object) -> object:
    """Read what `to_json` wrote."""
    adapter = _adapter(annotation)
    if adapter is None:
        raise SerializationError(
            "The stored value was written by pydantic for an annotation that is no longer there. "
            "Name its type in the step's return annotation, with pydantic installed."
        )
    return adapter.validate_python(tree)


def knows(cls: type) -> bool:
    """Whether pydantic is there and can make instances of a class from JSON, such as an URL."""
    return _adapter(cls) is not None


def _base_model() -> Any:
    return getattr(sys.modules.get("pydantic.main"), "BaseModel", None)


def _adapter(annotation: object) -> Any:
    """Make pydantic's adapter of an annotation; None without pydantic, or if pydantic has no idea of it."""
    if "pydantic.main" not in sys.modules:
        return None
    try:
        return _cached_adapter(annotation)
    except Exception:  # noqa: BLE001  (an annotation pydantic cannot use, in whatever way it says so)
        return None


@lru_cache(maxsize=256)
def _cached_adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def _default(cls: type, name: str, info: Any, known: dict[str, object]) -> object:
    if info.is_required():
        raise missing_field(cls, name)
    if getattr(info, "default_factory_takes_validated_data", False):
        return info.get_default(call_default_factory=True, validated_data=known)
    return info.get_default(call_default_factory=True)


def _private(cls: Any, stored: dict[str, object]) -> dict[str, object] | None:
    attributes = cls.__private_attributes__
    if not attributes:
        return None
    from pydantic_core import PydanticUndefined

    defaults = {name: attribute.get_default() for name, attribute in attributes.items() if name not in stored}
    known = {name: value for name, value in defaults.items() if value is not PydanticUndefined}
    return {**known, **{name: value for name, value in stored.items() if name in attributes}}
