"""Annotations as objects, one by one, so that a name that exists only for type checkers spoils no other."""

from __future__ import annotations

import sys
import typing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class _Missing:
    """No annotation."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""There is no annotation, or it names something that does not exist at run time."""


def return_annotation(function: Callable[..., object]) -> object:
    """Find the return annotation of a function, also below `from __future__ import annotations`.

    Args:
        function: A plain, async or wrapped function; of enclosing functions, it knows the names it uses.
    """
    return parameter_annotation(function, "return")


def parameter_annotation(function: Callable[..., object], name: str) -> object:
    """Find the annotation of a parameter, as `return_annotation` does."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    try:
        hint = function.__annotations__.get(name, MISSING)
    except (AttributeError, NameError):  # Python 3.14 evaluates them on access
        return MISSING
    code = getattr(function, "__code__", None)
    cells = getattr(function, "__closure__", None) or ()
    enclosing = {}
    for free, cell in zip(code.co_freevars if code else (), cells, strict=False):
        try:
            enclosing[free] = cell.cell_contents
        except ValueError:  # a variable of the enclosing function that is not bound yet
            continue
    return resolve(hint, getattr(function, "__globals__", {}), enclosing)


def field_annotations(cls: type[Any]) -> dict[str, object]:
    """Find the annotations of a class and its bases by name; those that cannot be resolved are left out."""
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        try:
            hints = getattr(base, "__annotations__", {})
        except NameError:  # Python 3.14 evaluates them on access
            continue
        module = sys.modules.get(base.__module__)
        # The module's names win: a field `date: date | None = None` hides the class within its own body.
        inner, outer = {**vars(base), base.__name__: base}, vars(module) if module else {}
        found.update({name: resolve(hint, inner, outer) for name, hint in hints.items()})
    return {name: hint for name, hint in found.items() if hint is not MISSING}


def resolve(hint: object, namespace: Mapping[str, object], names: Mapping[str, object]) -> object:
    """Evaluate an annotation that may be a string or contain some; MISSING if a name in it is unknown."""

    def holder() -> None: ...

    holder.__annotations__ = {"hint": hint}
    if hint is MISSING:
        return MISSING
    try:
        return typing.get_type_hints(holder, dict(namespace), dict(names), include_extras=True)["hint"]
    except Exception:  # noqa: BLE001  (whatever evaluating a user's annotation raises, it names no class)
        return MISSING
