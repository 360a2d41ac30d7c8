"""Result objects whose promises (`then`) are to be kept although nobody waits for them just now."""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from celery.result import ResultSet
from vine import barrier

from celery_durable.waiting.wait import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_durable.waiting.wait import Arrival, Results

logger = logging.getLogger(__name__)

_AT_LEAST, _RECENT = 256, 64


class Promises:
    """The result objects of a process that something may be waiting for.

    Celery registers every result that is waited for or put into a group, and takes it out again when it is
    resolved, or from `__del__`: the garbage collector may call that in any thread, at any moment, also inside
    these methods. So there is no lock; each change is a single operation on a dictionary, and who looks at
    all of them looks at a copy, made by `dict.copy()`: a list of pairs is made of objects, so that it may be
    interrupted.

    A result is held weakly unless it has a callback of its own (`then`), which would be lost with it.
    """

    def __init__(self) -> None:
        self._results: dict[tuple[str, int], weakref.ref[Any]] = {}
        self._held: dict[int, Any] = {}
        self._sweep_at = _AT_LEAST

    def __bool__(self) -> bool:
        return bool(self._results)

    def add(self, result: Any, *, weak: bool) -> None:
        """Take a result up; the callback that is to be kept is attached to it right afterwards."""
        self._results[result.id, id(result)] = weakref.ref(result)
        if not weak:
            self._held[id(result)] = result
            if len(self._held) > self._sweep_at:
                self._sweep()

    def remove(self, result: Any) -> None:
        """Drop a result; nothing happens if it is not there."""
        self._held.pop(id(result), None)
        self._results.pop((result.id, id(result)), None)

    def release(self, result: Any) -> None:
        """Drop a result that nobody waits for any more, unless somebody has a promise of it."""
        if not has_listeners(result):
            self.remove(result)
        elif not has_callback(result.on_ready):
            self._held.pop(id(result), None)

    def ids(self) -> list[str]:
        """Return the ids of all results, each once."""
        return list(dict.fromkeys(task_id for task_id, _ in self._results.copy()))

    def of(self, ids: Iterable[str]) -> Results:
        """Return the results of these ids."""
        wanted, found = set(ids), defaultdict[str, list[Any]](list)
        for (task_id, _), reference in self._results.copy().items():
            if task_id in wanted and (result := reference()) is not None:
                found[task_id].append(result)
        return found

    def keep(self, promised: Iterable[tuple[Any, Arrival]]) -> None:
        """Resolve results; what their callbacks raise is nothing to the thread that happens to call them."""
        for result, arrival in promised:
            try:
                resolve(arrival, [result])
            except Exception:
                logger.exception("The promise of the result of task %s was not kept", result.id)
                self.remove(result)

    def with_callbacks(self) -> bool:
        """Whether there is a result whose callbacks somebody has asked for."""
        alive = (reference() for reference in self._results.copy().values())
        return any(has_callback(result.on_ready) for result in alive if result is not None)

    def _sweep(self) -> None:
        """Hold weakly what needs no more; the newest ones may still get their callback."""
        for key, result in list(self._held.copy().items())[:-_RECENT]:
            if not has_callback(result.on_ready):
                self._held.pop(key, None)
        self._sweep_at = max(_AT_LEAST, 2 * len(self._held))


def has_listeners(result: Any) -> bool:
    """Whether anything hangs on this result's promise."""
    return any(listener is not None for listener in list(result.on_ready.listeners))


def has_callback(promise: Any) -> bool:
    """Whether a callback hangs on this promise that somebody has asked for.

    What Celery attaches itself to count the members of a group is none, unless the group has one.
    """
    return any(_asked_for(listener) for listener in list(promise.listeners) if listener is not None)


def _asked_for(listener: Any) -> bool:
    if isinstance(listener, barrier):
        return has_callback(listener.p)
    if not listener.weak:
        return True
    owner: Any = getattr(listener.fun(), "__self__", None)
    if isinstance(owner, ResultSet):
        of_the_set: Any = owner
        return has_callback(of_the_set.on_ready)
    return owner is not None
