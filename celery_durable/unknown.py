"""What a step would return that is not executed: nobody knows, and whoever looks at it is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_QUESTIONS = """
    setattr delattr repr str bytes format hash bool eq ne lt le gt ge len length_hint getitem setitem
    delitem iter next reversed contains call add sub mul matmul truediv floordiv mod divmod pow lshift
    rshift and xor or radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand
    rxor ror neg pos abs invert complex int float index round trunc floor ceil fspath enter exit await
    aiter anext aenter aexit
"""


class Unknown:
    """A value that may be handed on, and says nothing of itself but that it is not None.

    Arguments:
        look: called by every question; raises.
    """

    __slots__ = ("_look",)

    def __init__(self, look: Callable[[], None]) -> None:
        object.__setattr__(self, "_look", look)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "_look")()


def _asked(self: Unknown, *_: Any) -> Any:
    object.__getattribute__(self, "_look")()


for _name in _QUESTIONS.split():
    setattr(Unknown, f"__{_name}__", _asked)


def inside(value: Any) -> bool:
    """Whether there is something unknown in a value, or in a container that it is."""
    kind = type(value)  # isinstance would ask it
    if kind in (list, tuple):
        return any(inside(one) for one in value)
    if kind is dict:
        return any(inside(one) for one in value.values())
    return kind is Unknown


class _AnyDigest(bytes):
    """A digest of arguments that nobody knows: as good as any."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


ANY_ARGUMENTS: tuple[bytes, str] = (_AnyDigest(), "")
"""What stands for the arguments of a call that are not known."""
