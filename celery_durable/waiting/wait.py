"""One blocked call: what it waits for, and what has arrived for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.waiting.pace import FEW, LONGEST_PAUSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Results = dict[str, list[Any]]
"""Result objects by the id they wait for."""


@dataclass(frozen=True)
class Arrival:
    """What a question has found out about one id.

    Attributes:
        id: the task's.
        meta: what Celery's result API says of it; None when it cannot be read.
        ready: whether it is final, in Celery's eyes.
        error: why it cannot be read; whoever waits for this id gets it.
        mark: what is the same as long as the state is.
    """

    id: str
    meta: dict[str, Any] | None
    ready: bool
    error: Exception | None = None
    mark: object = None


def resolve(arrival: Arrival, results: Iterable[Any]) -> dict[str, Any]:
    """Return the meta that has arrived, after telling the results; raise why it cannot be read."""
    if arrival.error is not None:
        raise arrival.error
    meta = arrival.meta or {}
    for result in results:
        if result._cache is None:  # noqa: SLF001  (Celery's way)
            result._maybe_set_cache(meta)  # noqa: SLF001
    return meta


class Wait:
    """One blocked call; its own thread alone blocks in it, others hand it what they find.

    Arguments:
        results: the ids it needs, and the result objects that are to be told.
        deadline: the moment of its timeout, by `time.monotonic`.
        watching: whether it wants to be told of states that are not final.
        longest: seconds that a pause between two questions lasts at most.
        promises: whether it waits for all results that somebody has a promise of.
    """

    def __init__(
        self,
        results: Mapping[str, list[Any]],
        *,
        deadline: float | None = None,
        watching: bool = False,
        longest: float = LONGEST_PAUSE,
        promises: bool = False,
    ) -> None:
        self.results: Results = dict(results)
        self.deadline = deadline
        self.watching = watching
        self.longest = longest
        self.promises = promises
        self.began = time.monotonic()
        self.asked = False
        self.arrived: deque[tuple[Arrival, list[Any]]] = deque()
        self.told: deque[dict[str, Any]] = deque()
        self.wake = threading.Event()
        self.away_since: float | None = None
        self.trouble: Exception | None = None
        self._marks: dict[str, object] = {}

    @property
    def large(self) -> bool:
        """Whether asking for it takes long."""
        return len(self.results) > FEW

    @property
    def served(self) -> bool:
        """Whether there is something for it to take."""
        return bool(self.arrived or self.told)

    def suffer(self, error: Exception, now: float) -> None:
        """Note that Postgres is away, whoever has asked."""
        self.trouble = error
        self.away_since = now if self.away_since is None else self.away_since

    def away_for(self, now: float) -> float:
        """Return for how many seconds Postgres has been away, as far as this wait knows."""
        return 0.0 if self.away_since is None else now - self.away_since

    def ends_at(self, moment: float) -> bool:
        """Whether this is its timeout, so that there is no later moment to ask."""
        return self.deadline is not None and moment >= self.deadline

    def take(self, arrival: Arrival) -> list[Any]:
        """Take what has arrived, if it is waited for; return the result objects that this wait will tell."""
        if self.watching and arrival.id in self.results and self._is_news(arrival):
            self.told.append(arrival.meta or {})
        if not arrival.ready:
            return []
        results = self.results.pop(arrival.id, None)
        if results is None:
            return []
        self._marks.pop(arrival.id, None)
        self.arrived.append((arrival, results))
        self.wake.set()
        return results

    def _is_news(self, arrival: Arrival) -> bool:
        if arrival.meta is None or self._marks.get(arrival.id, self) == arrival.mark:
            return False
        self._marks[arrival.id] = arrival.mark
        self.wake.set()
        return True
