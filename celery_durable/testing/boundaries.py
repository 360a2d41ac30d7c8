"""The writes of an attempt, and a death before or after one of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from celery.exceptions import WorkerTerminate

from celery_durable import checkpoint as outcomes
from celery_durable.checkpoint import StepWrite
from celery_durable.store.writes import Finish, Release, Wait

if TYPE_CHECKING:
    from collections.abc import Callable

Side = Literal["before", "after"]

_NO_WRITES = frozenset(
    {"annotate", "asked_to_stop", "note_compensates", "stored", "update_state"}
)  # no history: nothing is repeated for their sake


class Crash(WorkerTerminate):
    """The worker dies here. Tasks let it pass, as they let what ends a worker pass."""


@dataclass(frozen=True)
class Boundary:
    """One write of one run.

    Attributes:
        key: the key of the step or wait that was stored; None for the end of an attempt.
        text: what it is, in words: `step 'charge'`, `the result of shop.fulfil`.
    """

    key: str | None
    text: str

    def __str__(self) -> str:
        return self.text


if TYPE_CHECKING:
    Strike = Callable[[Boundary, Side, uuid.UUID], None]


class Boundaries:
    """Stands in front of a run store: notes the writes of attempts, and strikes at one of them.

    Arguments:
        runs: the store's real statements.
        strike: called before and after each write, with the attempt's fence; where it wants a death it
            raises or kills.
    """

    def __init__(self, runs: Any, strike: Strike) -> None:
        self._runs = runs
        self._strike = strike
        self._tasks: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runs, name)
        if name == "waits":
            return _Waits(found, self)
        if not callable(found) or name in _NO_WRITES:
            return found
        return lambda *args, **kwargs: self.write(name, found, args, kwargs)

    def write(
        self, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Do a write; if it is one of an attempt that holds a run, with a chance to die on either side."""
        if name == "claim":
            claimed = call(*args, **kwargs)
            if isinstance(claimed, tuple):
                self._tasks[claimed[0].key] = claimed[0].task
            return claimed
        if not (len(args) > 1 and isinstance(args[1], uuid.UUID)):
            return call(*args, **kwargs)
        boundary = _boundary(name, self._tasks.get(args[0], "a task"), args[2:])
        self._strike(boundary, "before", args[1])
        done = call(*args, **kwargs)
        self._strike(boundary, "after", args[1])
        return done


class Transactions:
    """Stands in front of the transactions of steps: a death before one commits, or after.

    Arguments:
        transactions: the store's real ones.
        strike: as for `Boundaries`.
    """

    def __init__(self, transactions: Any, strike: Strike) -> None:
        self._transactions = transactions
        self._strike = strike

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transactions, name)

    def perform(self, place: Any, form: Any, body: Callable[[Any], Any], may_go_on: Any) -> Any:
        """Run a body and commit, with a chance to die on either side of the commit."""
        boundary = Boundary(place.key, f"transaction {place.key!r}")

        def inside(handle: Any) -> Any:
            entry = body(handle)
            self._strike(boundary, "before", place.fence)
            return entry

        done = self._transactions.perform(place, form, inside, may_go_on)
        self._strike(boundary, "after", place.fence)
        return done


class _Waits:
    """The same for the waits of a run."""

    def __init__(self, waits: Any, boundaries: Boundaries) -> None:
        self._waits = waits
        self._boundaries = boundaries

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._waits, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._boundaries.write(name, found, args, kwargs)


def _boundary(name: str, task: str, written: tuple[Any, ...]) -> Boundary:
    for one in written:
        if isinstance(one, StepWrite):
            failed = {outcomes.ERROR: "the error of ", outcomes.TRYING: "a failed try of "}
            started = {outcomes.STARTED: "the start of "}
            return Boundary(one.key, f"{ {**failed, **started}.get(one.outcome, '') }step {one.key!r}")
        if isinstance(one, Wait):
            return Boundary(one.key, f"wait {one.key!r}")
        if isinstance(one, Finish):
            return Boundary(None, f"the result of {task}" if one.error is None else f"the error of {task}")
        if isinstance(one, Release):
            return Boundary(None, f"the {one.outcome} of {task}")
    return Boundary(None, f"{name} of {task}")
