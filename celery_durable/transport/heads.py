"""Where the scans of a queue begin: past what is known to be claimed or dead."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from celery_durable.store.consuming import Place

if TYPE_CHECKING:
    from collections.abc import Iterable

PRIORITIES = range(9, -1, -1)
_LAG = 2.0  # seconds; what a longer transaction publishes is found by the next look from the start


class Heads:
    """The floors of one consumer.

    While some transaction is held open, Postgres cannot forget deleted messages, and a claim that began at
    the start of the queue would step over all of them, every time. A floor is a number that was reached a
    while ago: messages are numbered before they are committed, so late ones come in below the newest number.

    Arguments:
        pause: seconds between two looks from the very start, which find what came back or came late.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._reached: dict[tuple[str, int], deque[tuple[float, int]]] = {}
        self._floors: dict[tuple[str, int], int] = {}
        self._next_full = 0.0

    def places(self, queues: Iterable[str], *, from_start: bool = False) -> list[Place]:
        """Return the scans for some queues, in the order of delivery."""
        names = list(queues)
        floors = {} if from_start else self._floors
        return [
            Place(name, priority, floors.get((name, priority), 0))
            for priority in PRIORITIES
            for name in names
        ]

    def full_look_due(self, now: float) -> bool:
        """Whether it is time to begin at the very start."""
        return now >= self._next_full

    def looked(self, began: float, now: float, found: Iterable[Place]) -> None:
        """Note a look from the start: the slower, the rarer; and what it found there."""
        self._next_full = now + max(self._pause, 100 * (now - began))
        for place in found:
            self._sink((place.queue, place.priority), place.floor)

    def reached(self, queue: str, priority: int, number: int, now: float) -> None:
        """Note that nothing is left to claim up to `number` in this queue and priority."""
        key = (queue, priority)
        history = self._reached.setdefault(key, deque())
        if not history or now - history[-1][0] >= _LAG / 4:
            history.append((now, number))
        while history and now - history[0][0] >= _LAG:
            self._floors[key] = max(self._floors.get(key, 0), history.popleft()[1])

    def came_back(self, number: int) -> None:
        """Note that a message of this number, and maybe later ones, can be claimed again in some queue."""
        for key in {*self._floors, *self._reached}:
            self._sink(key, number - 1)

    def _sink(self, key: tuple[str, int], floor: int) -> None:
        if self._floors.get(key, 0) > floor:
            self._floors[key] = floor
        if key in self._reached:
            self._reached[key] = deque(entry for entry in self._reached[key] if entry[1] <= floor)

    @property
    def raised(self) -> bool:
        """Whether any scan begins past the start."""
        return any(self._floors.values())

    def forget(self) -> None:
        """Begin at the start again: nobody knows what has come back meanwhile."""
        self._floors.clear()
        self._reached.clear()
