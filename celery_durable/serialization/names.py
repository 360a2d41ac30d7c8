"""Classes by name: how a tag names a class, and how the name leads back to it without running any code."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXACT = "="
"""Prefix of a name whose class the annotation named: only the annotation decides when it is read."""


def module_of(cls: type) -> str:
    """Return the importable name of the class's module, also when it runs as `python -m package.module`."""
    name = str(cls.__module__)
    if name == "__main__":
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return spec.name if spec is not None else name
    return name


def full_name(cls: type) -> str:
    """Return `module:qualname` of a class."""
    return f"{module_of(cls)}:{cls.__qualname__}"


def find_class(name: str) -> type[Any] | None:
    """Look a class up in modules that are imported already; nothing is imported, no attribute hook is run."""
    module_name, _, qualname = name.partition(":")
    main = sys.modules.get("__main__")
    runs_as_main = main is not None and module_name == getattr(getattr(main, "__spec__", None), "name", None)
    module = main if runs_as_main else sys.modules.get(module_name)
    if not isinstance(module, ModuleType):
        return None
    found: object = None
    namespace = object.__getattribute__(module, "__dict__")  # a lazy module loads itself on vars(module)
    for part in qualname.split("."):
        found = namespace.get(part)
        if not isinstance(found, type):
            return None
        namespace = vars(found)
    return found if isinstance(found, type) else None


def choose_class(
    name: str,
    named: Sequence[type],
    accepts: Callable[[type], bool],
    fields: frozenset[str] = frozenset(),
) -> type[Any]:
    """Choose the class to rebuild a stored record with.

    Args:
        name: The stored name, with the prefix "=" if the annotation of then named exactly this class.
        named: The classes that the annotation of now names at this place.
        accepts: Whether a class is of the record's kind; no other class is ever used.
        fields: The stored fields; a class that lacks one of them is not taken for a renamed one.
    """
    exact, name = name.startswith(EXACT), name.removeprefix(EXACT)
    candidates = [cls for cls in named if accepts(cls)]
    for cls in candidates:
        if full_name(cls) == name:
            return cls
    found = find_class(name)
    if found is not None and not accepts(found):
        found = None
    if found is not None and not (exact and candidates):
        return found
    qualname = name.partition(":")[2]
    moved = [cls for cls in candidates if cls.__qualname__ == qualname]
    if not moved:
        moved = candidates if exact else [cls for cls in candidates if fields <= _attributes(cls)]
    if len(moved) == 1:
        return moved[0]
    if found is not None:
        return found
    raise SerializationError(
        f"The stored value needs the class {name.replace(':', '.')}, which no module imported here has. "
        "Import its module where the task is defined, or name the class in the step's return annotation "
        "(the annotation's class is used, whatever its name is now).",
        type=name,
    )


def _attributes(cls: type) -> set[str]:
    for attribute in ("__members__", "__dataclass_fields__", "model_fields", "_fields"):
        names = getattr(cls, attribute, None)
        if names is not None:
            return set(names)
    return set()
