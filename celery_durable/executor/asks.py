"""What a step asks for while it is performed: a body to be run, a write, a pause."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Ask:
    """Something that a step asks for; `now()` does it and returns the answer."""

    __slots__ = ()

    def now(self) -> Any:
        """Do it in this thread."""
        raise NotImplementedError


class Body(Ask):
    """The step's own function; its value, or its awaitable, is the answer."""

    __slots__ = ("now",)

    def __init__(self, run: Callable[[], Any]) -> None:
        self.now = run  # type: ignore[method-assign]


class Write(Ask):
    """Work in the store."""

    __slots__ = ("now",)

    def __init__(self, write: Callable[[], Any]) -> None:
        self.now = write  # type: ignore[method-assign]


class Pause(Ask):
    """A delay that is worth waiting for here, in seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def now(self) -> None:
        """Wait in this thread."""
        threading.Event().wait(self.seconds)


class Abandoned(Exception):  # noqa: N818  (no error of the step: its caller has cancelled it)
    """The run's own code has cancelled the step, by a timeout or a task group."""

    def __init__(self, cancelled: BaseException) -> None:
        super().__init__("cancelled by the body")
        self.cancelled = cancelled


def answered(asks: Generator[Ask, Any, Any]) -> Any:
    """Do all that a generator asks for, one after the other in this thread; return what it returns."""
    try:
        ask = next(asks)
        while True:
            try:
                answer = ask.now()
            except BaseException as error:  # noqa: BLE001  (it is raised again, where it was asked)
                ask = asks.throw(error)
            else:
                ask = asks.send(answer)
    except StopIteration as end:
        return end.value
