"""One question for all that a process waits for: one of its threads asks, the others are told."""

from __future__ import annotations

import logging
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from celery_durable.exceptions import StoreUnavailableError
from celery_durable.waiting.pace import Allowance, Question, question, reckoned, rest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_durable.waiting.promises import Promises
    from celery_durable.waiting.wait import Arrival, Wait

logger = logging.getLogger(__name__)

_ROUND = 1.0  # seconds after which a thread that sleeps looks by itself whether anybody asks
_PROMISES_EVERY, _SILENT_FOR = 1.0, 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_PATIENCE = 30.0  # seconds for an answer to one question
_LEADER = "leader"


class Asking(Protocol):
    """What the store is asked.

    Attributes:
        outage_budget: seconds that a wait outlasts Postgres being away.
    """

    @property
    def outage_budget(self) -> float: ...  # noqa: D102

    def finished(self, ids: Sequence[str], asked: Question, patience: float) -> tuple[list[Arrival], bool]:
        """Return those of these ids that have finished, and whether there may be more of them.

        Raises `StoreUnavailableError` at the first failure.
        """
        ...

    def states(self, ids: Sequence[str], patience: float) -> list[Arrival]:
        """Return what is known of each of these ids; raise `StoreUnavailableError` at the first failure."""
        ...


class _Place:
    """Where the waiting threads of one process meet.

    There is no lock that a thread could die with, or a child inherit locked: who leads is decided by
    `dict.setdefault`, which is atomic, and the leader takes itself out wherever it leaves.
    """

    def __init__(self) -> None:
        self.leader: dict[str, Wait] = {}
        self.active: dict[int, Wait] = {}
        self.asleep: dict[int, Wait] = {}
        self.silent: dict[str, float] = {}
        self.allowance = Allowance(now=time.monotonic())
        self.answered_at = 0.0
        self.cost = 0.0
        self.large_at = 0.0
        self.more = False
        self.promises_at = 0.0


class Poller:
    """Asks for everything that the threads or greenlets of this process wait for.

    Arguments:
        asking: what the store is asked.
        promises: results that are asked for along with the others, now and then.
    """

    def __init__(self, asking: Asking, promises: Promises) -> None:
        self._asking = asking
        self._promises = promises
        self.forget_threads()
        _pollers.add(self)

    def forget_threads(self) -> None:
        """Begin anew: in a child of a fork there is none of the threads that waited."""
        self._place = _Place()

    def nudge(self) -> None:
        """Let whoever pauses between two questions ask at once."""
        leader = self._place.leader.get(_LEADER)
        if leader is not None:
            leader.wake.set()

    def block(self, wait: Wait, until: float) -> None:
        """Return when something has arrived for `wait`, or at the moment `until`.

        No wait ends at its timeout without having been asked for.

        Raises `StoreUnavailableError` when Postgres has been away for longer than the outage budget.
        """
        place = self._place
        try:
            place.active[id(wait)] = wait
            self.nudge()
            while not wait.served:
                if place.leader.setdefault(_LEADER, wait) is not wait:
                    _sleep(place, wait, until)
                elif promised := self._lead(place, wait, until):
                    _step_down(place, wait)  # the callbacks may wait for other results
                    self._promises.keep(promised)
                    if wait.promises:
                        break
                if time.monotonic() >= until:
                    break
            if wait.ends_at(until) and not wait.asked and not wait.served:
                self._ask(place, wait, [wait], Question(0.0))
        finally:
            place.active.pop(id(wait), None)
            place.asleep.pop(id(wait), None)
            _step_down(place, wait)

    def _lead(self, place: _Place, wait: Wait, until: float) -> list[tuple[Any, Arrival]]:
        """Pause and ask once; return the promises to be kept."""
        wait.wake.clear()
        now = time.monotonic()
        waits = _due(place, now)
        asked = _next_question(place, wait, waits, now)
        if asked.pause > 0 and wait.wake.wait(max(0.0, min(asked.pause, until - now))):
            return []  # somebody has joined
        if asked.pause > until - now and not wait.ends_at(until):
            return []
        within = max(0.0, min(asked.within, until - time.monotonic()))
        return self._ask(place, wait, waits, Question(0.0, within, asked.every))

    def _ask(
        self, place: _Place, wait: Wait, waits: list[Wait], asked: Question
    ) -> list[tuple[Any, Arrival]]:
        """Ask for what all of these wait for and hand it out; return the promises to be kept."""
        now = time.monotonic()
        patience = _PATIENCE if wait.deadline is None else max(1.0, min(_PATIENCE, wait.deadline - now))
        place.allowance.spend(now)
        try:
            arrivals = self._answers(place, waits, asked, now, patience)
            place.answered_at = time.monotonic()
        except StoreUnavailableError as error:
            wait.asked = True
            place.answered_at = time.monotonic()
            for one in waits:
                one.suffer(error, now)
            if wait.away_for(now) >= self._asking.outage_budget:
                raise
            return []
        for one in waits:
            one.asked, one.trouble, one.away_since = True, None, None
        return self._hand_out(place, arrivals)

    def _answers(
        self, place: _Place, waits: list[Wait], asked: Question, now: float, patience: float
    ) -> list[Arrival]:
        # In copies: a thread at its timeout may have asked, too, and be handing out.
        watched = list(dict.fromkeys(one for wait in waits if wait.watching for one in list(wait.results)))
        ids = dict.fromkeys(one for wait in waits if not wait.watching for one in list(wait.results))
        if now >= place.promises_at or any(wait.promises for wait in waits):
            ids.update(dict.fromkeys(self._promises.ids()))
            place.promises_at = now + _PROMISES_EVERY
        place.silent = {one: since for one, since in place.silent.items() if since > now}
        wanted = [one for one in ids if one not in place.silent]
        arrivals: list[Arrival] = []
        place.more = False
        if watched:
            arrivals += self._asking.states(watched, patience)
        if wanted:
            found, place.more = self._asking.finished(wanted, asked, patience)
            arrivals += found
        if place.more:
            place.promises_at = now
        took = time.monotonic() - now
        if not asked.within:
            place.cost = reckoned(place.cost, took)
        if any(wait.large for wait in waits):
            place.large_at = now + took + rest(took)
        return arrivals

    def _hand_out(self, place: _Place, arrivals: Iterable[Arrival]) -> list[tuple[Any, Arrival]]:
        """Give each wait what is its own; return what nobody waits for, but somebody has a promise of."""
        told: set[int] = set()
        ready: dict[str, Arrival] = {}
        for arrival in arrivals:
            if arrival.ready:
                ready[arrival.id] = arrival
            elif arrival.mark is None:  # over, and Celery is to see nothing of it
                place.silent[arrival.id] = time.monotonic() + _SILENT_FOR
            for wait in list(place.active.values()):
                told.update(id(result) for result in wait.take(arrival))
        promised = self._promises.of(ready) if ready else {}
        return [
            (result, ready[one])
            for one, results in promised.items()
            for result in results
            if id(result) not in told
        ]


def _due(place: _Place, now: float) -> list[Wait]:
    """Return the waits to ask for now: those for thousands do not slow down the others."""
    waits = list(place.active.values())
    if place.more or now >= place.large_at:
        return waits
    return [wait for wait in waits if not wait.large] or waits


def _next_question(place: _Place, wait: Wait, waits: list[Wait], now: float) -> Question:
    """Return how to ask for what these wait for, and the pause before it: none for one that has just begun.

    The pause is counted from the last answer; who asked then need not be who is to ask now.
    """
    age = min(now - one.began for one in waits)
    watching = any(one.watching for one in waits)
    longest = min(one.longest for one in waits)
    ids = sum(len(one.results) for one in waits)
    asked = question(age, ids, place.cost, watching=watching, longest=longest)
    fresh = not all(one.asked for one in waits)
    if place.more or (fresh and len(waits) == 1):
        return Question(0.0, asked.within, asked.every)
    pause = asked.pause
    if wait.trouble is not None:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE + wait.away_for(now) / 2)
    left = 0.0 if fresh else place.answered_at + pause - now
    return Question(max(left, place.allowance.delay(now)), asked.within, asked.every)


def _sleep(place: _Place, wait: Wait, until: float) -> None:
    """Wait for what the leader finds, or for its place."""
    wait.wake.clear()
    place.asleep[id(wait)] = wait
    # In this order: who steps down looks for sleepers after it has left its place.
    if _LEADER in place.leader and not wait.served:
        wait.wake.wait(max(0.0, min(until - time.monotonic(), _ROUND)))
    place.asleep.pop(id(wait), None)


def _step_down(place: _Place, wait: Wait) -> None:
    """Leave the leader's place, if it is this wait's, and wake somebody to take it."""
    if place.leader.get(_LEADER) is wait:
        place.leader.pop(_LEADER, None)
    if _LEADER not in place.leader:
        for sleeper in list(place.asleep.values()):
            sleeper.wake.set()
            break


_pollers: weakref.WeakSet[Poller] = weakref.WeakSet()


def _in_child() -> None:
    for poller in list(_pollers):
        poller.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
