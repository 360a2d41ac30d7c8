"""A task whose worker dies, and what it did by then compared with what it does when nobody dies."""

from __future__ import annotations

import copy
import difflib
import os
import pprint
import signal
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import Task

from celery_durable.backend import durable_backend
from celery_durable.store.rehearsal import Rehearsal
from celery_durable.testing.boundaries import Boundaries, Boundary, Crash, Transactions
from celery_durable.testing.children import in_children
from celery_durable.testing.player import Player

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from celery import Celery

    from celery_durable.testing.boundaries import Side

_SAME_ID = str(uuid.UUID(int=7, version=4))  # of every repetition, so that idempotency keys are the same
_SIDES: tuple[Side, ...] = ("before", "after")


class CrashDifferenceError(AssertionError):
    """A crash changes what a task does or returns."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended, and its effects."""

    state: str
    result: Any
    effects: Any


class Write(NamedTuple):
    """One write among all of a task: what it stores, and how many stored that by then."""

    boundary: Boundary
    number: int


@dataclass
class Place:
    """Where a worker dies: at a write, or at the first one of a step.

    A write is told by what it stores, not by how many there were before: those of steps that are executed
    side by side come in any order.
    """

    side: Side
    write: Write | None = None
    key: str | None = None
    kill: bool = False
    seen: list[Boundary] = field(default_factory=list)
    struck: bool = False
    dead: uuid.UUID | None = None
    tell: Callable[[Boundary], None] | None = None

    def strike(self, boundary: Boundary, side: Side, fence: uuid.UUID) -> None:
        """Die, if this is the place; an attempt that has died writes nothing more."""
        if fence == self.dead:
            raise Crash
        if side == "before":
            self.seen.append(boundary)
            if self.tell is not None:
                self.tell(boundary)
        if side == self.side and not self.struck and self._meant(boundary):
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            self.struck, self.dead = True, fence
            raise Crash

    def _meant(self, boundary: Boundary) -> bool:
        if self.write is None:
            return self.key is not None and self.key == boundary.key
        return self.write == Write(boundary, self.seen.count(boundary))

    def missed(self) -> bool:
        """Whether the step or wait was not stored at all, this time; how an attempt leaves may differ."""
        return (
            self.write is not None
            and self.write.boundary.key is not None
            and self.write.boundary not in self.seen
        )


class Crashes:
    """Executes tasks of an app whose worker dies on the way.

    Arguments:
        app: the app, pointed at a store of the test's own, which is emptied again and again.
        kill: whether a child process executes the task and is killed with SIGKILL; else a `SystemExit` is
            raised where it would die, which is faster, and which `finally` blocks notice.
    """

    def __init__(self, app: Celery, *, kill: bool = False) -> None:
        self._app = app
        self._kill = kill

    def at(
        self,
        step: str,
        signature: Any,
        *,
        side: Side = "after",
        when_waiting: Callable[[str], object] | None = None,
    ) -> Any:
        """Execute a task whose worker dies once, at the checkpoint of a step; return the task's result.

        Arguments:
            step: the step's key: its name, with `#2` for the second call.
            signature: `task.s(...)`.
            side: `after` the checkpoint is stored, or `before`, with the step's body done.
            when_waiting: see `Player.run`.

        Raises what the task raised, and `CrashDifferenceError` when no such step was stored.
        """
        _check(signature, side)
        place = Place(side, key=step, kill=self._kill)
        result = self._executed(signature, place, when_waiting)
        if not place.struck:
            stored = ", ".join(repr(one.key) for one in place.seen if one.key) or "none"
            message = f"The worker did not die: no step {step!r} was stored. Stored were: {stored}"
            raise CrashDifferenceError(message)
        return result.get(timeout=10, disable_sync_subtasks=False)

    def everywhere(
        self,
        signature: Any,
        *,
        effects: Callable[[], Any] | None = None,
        reset: Callable[[], object] | None = None,
        sides: Sequence[Side] = _SIDES,
        when_waiting: Callable[[str], object] | None = None,
    ) -> list[str]:
        """Execute a task once undisturbed, then again for each of its checkpoints, dying there.

        Returns the checkpoints, in words. Raises `CrashDifferenceError` that says where a death changes the
        result or the effects.

        Arguments:
            signature: `task.s(...)`.
            effects: returns what the task has done outside, as something that `==` compares.
            reset: undoes it; called in front of each execution.
            sides: which sides of a checkpoint: `before` and `after` it is stored.
            when_waiting: see `Player.run`.
        """
        _check(signature, *sides)
        undisturbed = Place("after")
        expected = self._outcome(signature, undisturbed, effects, reset, when_waiting)
        problems = []
        for number, boundary in enumerate(undisturbed.seen, start=1):
            write = Write(boundary, undisturbed.seen[:number].count(boundary))
            for side in sides:
                place = Place(side, write, kill=self._kill)
                found = self._outcome(signature, place, effects, reset, when_waiting)
                if place.missed():
                    problems.append(f"{boundary} was stored once, and another time it was not")
                problems += _differences(expected, found, f"when the worker dies {side} {boundary} is stored")
        if problems:
            raise CrashDifferenceError(
                "\n".join([f"{_name(signature)} does not survive its worker:", *problems])
            )
        return [str(boundary) for boundary in undisturbed.seen]

    def _outcome(
        self,
        signature: Any,
        place: Place,
        effects: Callable[[], Any] | None,
        reset: Callable[[], object] | None,
        when_waiting: Callable[[str], object] | None,
    ) -> Outcome:
        if reset is not None:
            reset()
        result = self._executed(signature, place, when_waiting)
        value = result.get(timeout=10, disable_sync_subtasks=False, propagate=False)
        return Outcome(result.state, value, copy.deepcopy(effects()) if effects is not None else None)

    def _executed(self, signature: Any, place: Place, when_waiting: Callable[[str], object] | None) -> Any:
        store = durable_backend(self._app).store
        Rehearsal(store.connections, schema=store.settings.schema).empty()
        store.connections.close()  # the clock was turned back
        result = signature.clone().apply_async(task_id=_SAME_ID)
        player = Player(self._app)
        with _in_the_way(store, place):
            if self._kill:
                in_children(player, place, when_waiting)
            else:
                player.play(when_waiting=when_waiting)
        return result


def _check(signature: Any, *sides: str) -> None:
    """Raise `TypeError` for what is no signature, and `ValueError` for what is no side of a write."""
    if not callable(getattr(signature, "apply_async", None)) or isinstance(signature, Task):
        message = f"{signature!r} is no signature: give task.s(...), the call that is to be executed"
        raise TypeError(message)
    for side in sides:
        if side not in _SIDES:
            message = f"A checkpoint has no side {side!r}: the worker dies 'before' or 'after' it is stored"
            raise ValueError(message)


@contextmanager
def _in_the_way(store: Any, place: Place) -> Iterator[None]:
    runs, transactions = store.runs, store.transactions
    store.runs = Boundaries(runs, place.strike)
    store.transactions = lambda database=None: Transactions(transactions(database), place.strike)
    try:
        yield
    finally:
        store.runs = runs
        del store.transactions


def _differences(expected: Outcome, found: Outcome, when: str) -> list[str]:
    problems = []
    if expected.effects != found.effects:
        problems.append(f"  effects differ {when}:\n{_difference(expected.effects, found.effects)}")
    if (expected.state, repr(expected.result)) != (found.state, repr(found.result)):
        ended = [f"{one.state} {one.result!r}" for one in (expected, found)]
        problems.append(f"  the result differs {when}:\n      - {ended[0]}\n      + {ended[1]}")
    return problems


def _difference(expected: Any, found: Any) -> str:
    lines = difflib.ndiff(pprint.pformat(expected).splitlines(), pprint.pformat(found).splitlines())
    return "\n".join(f"      {line.rstrip()}" for line in lines if not line.startswith("?"))


def _name(signature: Any) -> str:
    return str(getattr(signature, "task", signature))
