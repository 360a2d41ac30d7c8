"""The body of a step while it is executed: by whom, and what it has sent."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import Task

_counting = threading.Lock()


class Body:
    """One execution of a step's body, by the thread and the asyncio task that make it."""

    __slots__ = ("_sent", "_task", "_thread")

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()
        self._task = _current_task()
        self._sent: dict[str, int] = {}

    @property
    def here(self) -> bool:
        """Whether this is the thread and the task that execute the body, so that its calls have one order."""
        if threading.get_ident() != self._thread:
            return False
        task = _current_task()
        return task is self._task or (self._task is None and _is_waited_for(task))

    def number(self, what: str) -> int:
        """Count something that the body sends; return its number, from 1."""
        with _counting:
            self._sent[what] = self._sent.get(what, 0) + 1
            return self._sent[what]

    def ends(self) -> None:
        """Note that it is over: what still goes on of it is beside it."""
        self._thread = self._task = None


def _current_task() -> Task[Any] | None:
    asyncio = sys.modules.get("asyncio")  # most apps do not need it
    if asyncio is None or asyncio._get_running_loop() is None:  # noqa: SLF001  (current_task would raise)
        return None
    task: Task[Any] | None = asyncio.current_task()
    return task


def _is_waited_for(task: Any) -> bool:
    """Whether the thread itself waits for this task, as in asyncio.run: it goes on where the thread was.

    asyncio says so in the task's callbacks only. A loop that says it otherwise has its calls told by content.
    """
    callbacks = getattr(task, "_callbacks", None) or ()
    return any("run_until_complete" in getattr(callback, "__qualname__", "") for callback, *_ in callbacks)
