"""Which attempt a thread works for that has no context of its own: told by when it was started."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar
from weakref import WeakSet

from celery_durable.exceptions import StepUsageError

X = TypeVar("X")  # an execution
B = TypeVar("B")  # the body of a step

_ADVICE = (
    "Hand the run's context on, executor.submit(contextvars.copy_context().run, my_step, ...), or use "
    "durable.gather, or in async code asyncio.to_thread(my_step, ...)"
)


class Active(Generic[X, B]):
    """An attempt that is being executed.

    Attributes:
        bodies: the bodies of its steps that are being executed, by the steps' keys.
        older: threads that it cannot have started.
        doubtful: threads that it, or another attempt that is over, has started.
    """

    def __init__(self, execution: X) -> None:
        self.execution = execution
        self.bodies: dict[str, B] = {}
        self.older = WeakSet(threading.enumerate())
        self.doubtful: WeakSet[threading.Thread] = WeakSet()


class Actives(Generic[X, B]):
    """All of this process."""

    def __init__(self) -> None:
        self._by_id: dict[int, Active[X, B]] = {}
        # A thread that starts while one attempt begins and another one ends must be known to either.
        self._lock = threading.Lock()

    def begin(self, execution: X) -> None:
        """Note that an attempt begins."""
        with self._lock:
            self._by_id[id(execution)] = Active(execution)

    def end(self, execution: X) -> None:
        """Note that it is over; the threads that it may have left behind are nobody's from now on."""
        with self._lock:
            ended = self._by_id.pop(id(execution))
            if self._by_id:
                left = [thread for thread in threading.enumerate() if thread not in ended.older]
                for other in self._by_id.values():
                    other.doubtful.update(left)

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def of(self, execution: X) -> Active[X, B] | None:
        """Return what is known of an attempt."""
        return self._by_id.get(id(execution))

    def of_this_thread(self, *, older: bool) -> Active[X, B] | None:
        """Return the attempt that has started this thread, or None.

        Arguments:
            older: whether a thread that is older than every attempt is in none, rather than refused.

        Raises `StepUsageError` when it cannot be told.
        """
        this = threading.current_thread()
        with self._lock:
            younger = [active for active in self._by_id.values() if this not in active.older]
        if len(younger) == 1 and this not in younger[0].doubtful:
            return younger[0]
        if not younger and (older or not self._by_id):
            return None
        raise refusal(
            "may have been started by more than one run, so it cannot be told which one it works for"
            if younger
            else "is older than the run that executes in this process, so it may work for another one"
        )


def refusal(reason: str) -> StepUsageError:
    """Return what says why the place of this thread is not known, and what to do."""
    return StepUsageError(f"This thread {reason}. {_ADVICE}")
