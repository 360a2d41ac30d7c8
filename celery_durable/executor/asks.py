"""What a step asks for while it is performed: a body to be run, a write, a look into the store, a pause."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


class Ask:
    """Something that a step asks for.

    Arguments:
        now: does it in this thread and returns the answer.
    """

    __slots__ = ("now",)

    def __init__(self, now: Callable[[], Any]) -> None:
        self.now = now


class Body(Ask):
    """The step's own function; its value, or its awaitable, is the answer."""

    __slots__ = ()


class Write(Ask):
    """Work in the store that ends the step: who cancels it meanwhile comes too late.

    It may be applied, and then a replay knows the step as finished.

    Arguments:
        now: does it.
        number: of the outcome, in the order of those of the run.
    """

    __slots__ = ("number",)

    def __init__(self, now: Callable[[], Any], number: int) -> None:
        super().__init__(now)
        self.number = number


class Note(Ask):
    """Work in the store on the way: a look, or a note that is written over later."""

    __slots__ = ()


class Pause(Ask):
    """A delay that is worth waiting for here, in seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        super().__init__(lambda: threading.Event().wait(seconds))
        self.seconds = seconds


class Abandoned(BaseException):
    """The run's own code has cancelled the step, by a timeout or a task group: no error of the step."""

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
