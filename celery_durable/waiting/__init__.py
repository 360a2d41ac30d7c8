"""Celery's side of waiting for results: `get`, `join`, `then`, and what they need of a result backend."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import TimeoutError as ResultTimeoutError

from celery_durable.waiting.asking import Questions
from celery_durable.waiting.background import Background
from celery_durable.waiting.poller import Poller
from celery_durable.waiting.promises import Promises
from celery_durable.waiting.wait import Arrival, Wait, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_FIRST_INTERVAL, _INTERVAL, _SHORTEST_INTERVAL = 0.05, 0.5, 0.1  # seconds between calls of on_interval
_REST = 4  # times as long as on_interval takes: Celery looks at the parents of a result in it


class WaitingMixin:
    """What a result backend needs for results that are waited for, in place of Celery's own two mixins.

    `AsyncBackendMixin` is made for a backend that is told of results, and `SyncBackendMixin` asks for one
    result at a time. This one asks for all of them at once, from whichever thread waits (see `Poller`).
    """

    supports_native_join = True

    if TYPE_CHECKING:
        _cache: Any
        _ensure_not_eager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._promises = Promises()
        self._poller = Poller(Questions(self), self._promises)
        self._background = Background(self._poller, self._promises)

    @property
    def is_async(self) -> bool:
        """Whether promises of results are kept."""
        return True

    def add_pending_result(self, result: Any, weak: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002
        """Take up a result that something waits for, now or by `then`."""
        if result._cache is None:  # noqa: SLF001  (Celery's way)
            self._promises.add(result, weak=weak)
            self._background.look()
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:  # noqa: FBT001, FBT002
        """Take up several results."""
        return [self.add_pending_result(result, weak=weak) for result in results]

    def remove_pending_result(self, result: Any) -> Any:
        """Drop a result: it is resolved or forgotten, or its object ends (in any thread, at any moment)."""
        self._promises.remove(result)
        return result

    def wait_for_pending(
        self,
        result: Any,
        callback: Callable[[str, Any], None] | None = None,
        propagate: bool = True,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> Any:
        """Return the value of a result when it is final."""
        self._ensure_not_eager()
        try:
            for meta in self._arrivals({result.id: [result]}, **options):
                on_interval = options.get("on_interval")
                if on_interval and meta["status"] in states.PROPAGATE_STATES:
                    on_interval()  # raises what a parent failed with, which says more than that it failed
        finally:
            self._promises.release(result)
        return result.maybe_throw(callback=callback, propagate=propagate)

    def wait_for(self, task_id: str, timeout: float | None = None, **options: Any) -> dict[str, Any] | None:
        """Return a task's meta when it is final."""
        self._ensure_not_eager()
        return next((meta for _, meta in self.get_many([task_id], timeout=timeout, **options)), None)

    def get_many(  # noqa: PLR0917  (Celery's signature)
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = _INTERVAL,
        no_ack: bool = True,  # noqa: FBT001, FBT002, ARG002
        on_message: Callable[[dict[str, Any]], None] | None = None,
        on_interval: Callable[[], None] | None = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,  # noqa: N803, ARG002
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield id and meta of each of these tasks as they finish.

        With `max_iterations`, only of those that have finished by now: there is no better moment later.
        """
        ids: dict[str, list[Any]] = {str(task_id): [] for task_id in task_ids}
        try:
            for meta in self._arrivals(
                ids,
                timeout=0 if max_iterations else timeout,
                interval=interval,
                on_message=on_message,
                on_interval=on_interval,
            ):
                yield meta["task_id"], meta
        except ResultTimeoutError:
            if not max_iterations:
                raise

    def iter_native(
        self, result: Any, timeout: float | None = None, **options: Any
    ) -> Iterator[tuple[str, Any]]:
        """Yield id and meta of each result of a set as they finish; of a set within it, id and results."""
        self._ensure_not_eager()
        waiting: dict[str, list[Any]] = {}
        for node in result.results:
            if not hasattr(node, "_cache"):
                yield node.id, node.children
            elif node._cache:  # noqa: SLF001
                yield node.id, node._cache  # noqa: SLF001
            else:
                waiting.setdefault(node.id, []).append(node)
        times = {task_id: len(nodes) for task_id, nodes in waiting.items()}
        for meta in self._arrivals(waiting, timeout=timeout, **options):
            for _ in range(times[meta["task_id"]]):
                yield meta["task_id"], meta

    def _arrivals(
        self,
        results: dict[str, list[Any]],
        *,
        timeout: float | None = None,
        interval: float | None = None,
        on_interval: Callable[[], None] | None = None,
        on_message: Callable[[dict[str, Any]], None] | None = None,
        **_: Any,
    ) -> Iterator[dict[str, Any]]:
        """Yield the meta of each of these ids when it is final, its results resolved.

        Callbacks are called in the thread that waits. Raises Celery's `TimeoutError`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = Wait(results, deadline=deadline, watching=on_message is not None)
        for arrival in self._known(results):
            wait.take(arrival)
        ticks = _Ticks(on_interval, interval)
        while True:
            while wait.told and on_message is not None:
                on_message(wait.told.popleft())
            while wait.arrived:
                yield resolve(*wait.arrived.popleft())
            if not wait.results:
                return
            self._poller.block(wait, ticks.until(deadline))
            ticks.call_if_due()
            if not wait.served and deadline is not None and time.monotonic() >= deadline:
                message = "The operation timed out."
                raise ResultTimeoutError(message) from wait.trouble

    def _known(self, ids: Iterable[str]) -> Sequence[Arrival]:
        """Return what the cache holds of these."""
        known = []
        for task_id in ids:
            try:
                meta = self._cache[task_id]
            except KeyError:
                continue
            if meta["status"] in states.READY_STATES:
                known.append(Arrival(task_id, meta, ready=True))
        return known


class _Ticks:
    """When to call `on_interval`, and calling it.

    Arguments:
        on_interval: what to call.
        interval: seconds between two calls.
    """

    def __init__(self, on_interval: Callable[[], None] | None, interval: float | None) -> None:
        self._call = on_interval
        self._interval = max(_INTERVAL if interval is None else interval, _SHORTEST_INTERVAL)
        self._next = time.monotonic() + min(_FIRST_INTERVAL, self._interval)

    def until(self, deadline: float | None) -> float:
        """Return the moment up to which to wait for results."""
        return self._next if deadline is None else min(self._next, deadline)

    def call_if_due(self) -> None:
        """Call it, if that moment has come."""
        began = time.monotonic()
        if began < self._next:
            return
        if self._call is not None:
            self._call()
        took = time.monotonic() - began
        self._next = began + took + max(self._interval, _REST * took)
