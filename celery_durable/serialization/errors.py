"""Exceptions as plain trees, and exceptions made from them: of the same class, with what can be stored.

An exception is its class, its `args` and its attributes. Attributes that cannot be stored are left out, and
a note says so. It is made again as unpickling would make it, with no other code than its class; where the
constructor wants something else than `args`, without the constructor.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery_durable.serialization.leaves import lower_str
from celery_durable.serialization.lowering import Lowering
from celery_durable.serialization.names import find_class, full_name
from celery_durable.serialization.refusals import Refused, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from celery_durable.serialization.shapes import Shape

_NOTES = "__notes__"
_REFUSED = object()
_NAMED = 5
_BY_CLASS = ""
_MAKERS = frozenset({_BY_CLASS, "from_exception_data"})  # the class itself; pydantic's way
_EVERY_CLASS = frozenset({Exception, BaseException, object})


def lower_error(error: BaseException, *, sorts_keys: bool = False) -> dict[str, Any]:
    """Return as plain trees what an exception carries besides the name of its class.

    Args:
        error: The exception; those among its arguments and attributes are lowered with it.
        sorts_keys: Says that the format loses the order of an object's keys.
    """
    return _ErrorLowering(sorts_keys=sorts_keys).parts(error)


def build_error(name: str, parts: Mapping[str, Any]) -> BaseException | None:
    """Make an exception; None if neither its class nor one of its bases is imported here.

    Args:
        name: Its class, as `module:qualname`.
        parts: What `lower_error` returned, restored.
    """
    cls, args = _error_class(name), tuple(parts.get("args", ()))
    if cls is not None:
        for way in _ways(cls, args, parts.get("made", ())):
            with suppress(Exception):  # whatever a constructor has against being called so
                error = way()
                if type(error) is cls and error.args == args:
                    _set_state(error, parts.get("state", {}))
                    return error
    return _stand_in(name, cls, args, parts)


def is_same(one: BaseException, other: BaseException) -> bool:
    """Whether two exceptions are the same for who catches them: class, text, notes, and types of `args`."""
    return (
        type(one) is type(other)
        and _text(one) == _text(other)
        and getattr(one, _NOTES, None) == getattr(other, _NOTES, None)
        and _alike(one.args, other.args)
    )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, BaseException):
        return is_same(one, other)
    if isinstance(one, (list, tuple)):  # the members of a group
        return type(one) is type(other) and len(one) == len(other) and all(map(_alike, one, other))
    return type(one) is type(other)


class _ErrorLowering(Lowering):
    """Lowers exceptions too, where values may have none: what they lose is said in a note."""

    def __init__(self, *, sorts_keys: bool) -> None:
        super().__init__(sorts_keys=sorts_keys)
        self._open: list[BaseException] = []  # those around the place at hand

    def _special(self, value: Any, shape: Shape, depth: int) -> object:
        if not isinstance(value, BaseException):
            return super()._special(value, shape, depth)
        if any(value is around for around in self._open):
            raise Refused(value, "it contains itself")
        return {"~error": [full_name(type(value)), self.parts(value, depth)]}

    def parts(self, error: BaseException, depth: int = 0) -> dict[str, Any]:
        """Lower what an exception carries; what is empty, or follows from its class, is left out."""
        self._open.append(error)
        try:
            made, state = _reduced(error)
            parts = {
                "args": [self._arg(arg, depth) for arg in error.args],
                "made": self._made(made, depth),
                "state": self._state(error, state, depth),
                "bases": [] if _is_builtin(type(error)) else [full_name(cls) for cls in _bases(type(error))],
                "text": None if _has_plain_text(error) else self.tree(_text(error)),
            }
        finally:
            self._open.pop()
        return {name: tree for name, tree in parts.items() if tree}

    def _arg(self, value: object, depth: int) -> object:
        tree = self._kept(value, depth)
        return lower_str(_shown(value)) if tree is _REFUSED else tree

    def _made(self, made: Sequence[Any], depth: int) -> object:
        trees = [self._kept(value, depth) for value in made]
        return None if any(tree is _REFUSED for tree in trees) else trees

    def _state(self, error: BaseException, state: Mapping[str, Any], depth: int) -> object:
        trees = {name: self._kept(value, depth) for name, value in state.items()}
        kept = [[lower_str(name), tree] for name, tree in trees.items() if tree is not _REFUSED]
        if left := sorted(name for name, tree in trees.items() if tree is _REFUSED):
            notes = [*getattr(error, _NOTES, ()), _left_out(left)]
            kept.append([_NOTES, self.tree(notes)])
        return {"~dict": kept} if kept else None

    def _kept(self, value: object, depth: int) -> Any:
        """Lower a value once, for errors in errors would be lowered twice as often at each level."""
        try:
            return self.tree(value, depth=depth)
        except Exception:  # noqa: BLE001  (Refused, or what looking at a user's object raises)
            return _REFUSED


def _reduced(error: BaseException) -> tuple[list[Any], dict[str, Any]]:
    """Return how pickle would have an exception made, if by its class from other arguments; and its state."""
    state, made = dict(vars(error)), []
    with suppress(Exception):  # a `__reduce__` is the user's code
        how, args, *more = tuple(error.__reduce_ex__(2))
        maker = _BY_CLASS if how is type(error) else getattr(how, "__name__", "")
        if (how is type(error) and args is not error.args) or _is_method(how, type(error), maker):
            made = [maker, *args]
        if how is type(error) and more and isinstance(more[0], dict):
            state.update(more[0])
    return made, state


def _is_method(how: object, cls: type, name: str) -> bool:
    return name in _MAKERS and getattr(how, "__self__", None) is cls


def _ways(cls: Any, args: tuple[Any, ...], made: Sequence[Any]) -> Iterator[Callable[[], BaseException]]:
    if made and made[0] in _MAKERS:
        yield lambda: _made(cls, args, *made)
    yield lambda: cls(*args)
    yield lambda: _unconstructed(cls, args)


def _made(cls: Any, args: tuple[Any, ...], maker: str, *values: Any) -> BaseException:
    """Make an exception as pickle would; pydantic's gets other `args` so than it was raised with."""
    error: BaseException = (cls if maker == _BY_CLASS else getattr(cls, maker))(*values)
    error.args = args
    return error


def _unconstructed(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """Make an exception as Python's own class does which it derives from, without its constructor."""
    own: Any = next(base for base in cls.__mro__ if _is_builtin(base))
    error: BaseException = own.__new__(cls, *args)
    own.__init__(error, *args)
    return error


def _stand_in(
    name: str, cls: type[BaseException] | None, args: tuple[Any, ...], parts: Mapping[str, Any]
) -> BaseException | None:
    """Make an exception of a class named like the one that cannot be had, below the nearest base."""
    bases = [base for known in parts.get("bases", ()) if (base := _error_class(known)) is not None]
    if cls is None and not bases:
        return None
    module, _, qualname = name.partition(":")
    names = {"__module__": module, "__qualname__": qualname}
    said = (parts["text"],) if "text" in parts else args
    for base in (*bases, Exception):
        with suppress(Exception):  # a base whose own layout or constructor allows no such class
            error = _unconstructed(type(qualname.rpartition(".")[2], (base,), names), said)
            _set_state(error, parts.get("state", {}))
            return error
    return None


def _set_state(error: BaseException, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        try:
            BaseException.__setstate__(error, {name: value})
        except Exception:  # noqa: BLE001  (a property without a setter)
            vars(error)[name] = value


def _error_class(name: str) -> type[BaseException] | None:
    found = find_class(name)
    return found if found is not None and issubclass(found, BaseException) else None


def _bases(cls: type) -> list[type]:
    return [base for base in cls.__mro__[1:] if base not in _EVERY_CLASS]


def _is_builtin(cls: type) -> bool:
    return cls.__module__ == "builtins"


def _has_plain_text(error: BaseException) -> bool:
    return type(error).__str__ is BaseException.__str__ or _is_builtin(type(error))


def _text(error: BaseException) -> str | None:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (a message is the user's code)
        return None


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001  (a repr is the user's code)
        return f"<{type_name(type(value))}>"


def _left_out(names: list[str]) -> str:
    named = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return (
        f"celery-durable cannot store these attributes of the error, so whoever catches it may lack them: "
        f"{named}. Read them where it is raised, and return or raise what is needed of them."
    )
