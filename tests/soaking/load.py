"""What is asked for: runs of all kinds, each with the outcome it must have."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

import celery_durable as durable
from celery_durable.exceptions import DurableError, RunNotFoundError, RunStateError, StoreError
from celery_durable.operations import Runs
from soaking.tasks import tries_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from harness.world import World


@dataclass(frozen=True)
class Sent:
    """A run that was asked for.

    Attributes:
        expected: its result; for a run that is to end badly its Celery state.
        certain: whether the call was answered; else it may be there or not.
    """

    id: str
    kind: str
    expected: Any
    certain: bool


@dataclass
class Errand:
    """Something that is to be done to a run later, however often it takes."""

    at: float
    run: str
    do: Callable[[], None]


@dataclass
class Load:
    """Sends runs, and does to them what they wait for.

    Attributes:
        sent: what was asked for.
    """

    world: World
    chance: random.Random
    sent: list[Sent] = field(default_factory=list)
    errands: list[Errand] = field(default_factory=list)

    def send(self, count: int) -> None:
        """Ask for some runs."""
        for _ in range(count):
            kind, args, expected, later = self.chance.choice(_KINDS)(self.chance)
            run_id = str(uuid.uuid4())
            if kind == "mending":
                args = (run_id,)
            certain = True
            try:
                self.world.app.tasks[kind].apply_async(args, task_id=run_id)
            except (StoreError, OperationalError):
                certain = False  # Postgres was away: perhaps the answer was lost, perhaps the call
            self.sent.append(Sent(run_id, kind, expected, certain))
            for delay, errand in later:
                self._later(delay, run_id, errand)

    def _later(self, delay: float, run_id: str, errand: tuple[str, ...]) -> None:
        def do() -> None:
            what, *more = errand
            getattr(self, f"_{what}")(run_id, *more)

        self.errands.append(Errand(time.monotonic() + delay, run_id, do))

    def run_errands(self, *, all_of_them: bool = False) -> None:
        """Do what is due; what Postgres does not take now is tried again."""
        now = time.monotonic()
        due = [one for one in self.errands if all_of_them or one.at <= now]
        self.errands = [one for one in self.errands if one not in due]
        for errand in due:
            try:
                errand.do()
            except (StoreError, OperationalError):
                errand.at = time.monotonic() + 1.0
                self.errands.append(errand)

    def _signal(self, run_id: str, name: str) -> None:
        try:
            for _ in range(self.chance.randint(1, 2)):  # senders repeat themselves
                durable.send_signal(run_id, name, name, idempotency_key=name, app=self.world.app)
        except (RunNotFoundError, RunStateError):
            pass  # its call was lost, or the first one of two was enough

    def _cancel(self, run_id: str) -> None:
        """Cancel a run when it has done everything that is to be taken back."""
        try:
            if self.world.tables.state(run_id) == "waiting":
                Runs(self.world.app).cancel(run_id)
            elif not self._over(run_id):
                self._later(0.5, run_id, ("cancel",))
        except DurableError as error:
            if isinstance(error, StoreError):
                raise

    def _mend(self, run_id: str) -> None:
        """Resume a parent that has failed with its child."""
        state = self.world.tables.state(run_id)
        if state == "failed":
            tries_of(run_id, "mended").touch()
            Runs(self.world.app).resume(run_id)
        elif state not in (None, "succeeded"):
            self._later(0.5, run_id, ("mend",))

    def _over(self, run_id: str) -> bool:
        return self.world.tables.state(run_id) in (None, "succeeded", "failed", "cancelled")


def _names(chance: random.Random, most: int) -> list[str]:
    return [f"step{number}" for number in range(chance.randint(1, most))]


def _flow(chance: random.Random) -> Any:
    # Long steps are those in which a worker is frozen, and comes back when others have done them.
    long = chance.random() < 0.3
    names, seconds = _names(chance, 3 if long else 8), 1.0 if long else chance.uniform(0.0, 0.03)
    return "flow", (names, seconds), [f"{name} done" for name in names], ()


def _flaky(chance: random.Random) -> Any:
    failures = chance.randint(1, 3)
    return "flaky", (failures,), ["first done", "second done", failures], ()


def _stubborn(chance: random.Random) -> Any:
    failures = [chance.randint(0, 3) for _ in range(chance.randint(1, 3))]
    return "stubborn", (failures,), [f"{count} overcome" for count in failures], ()


def _rest(chance: random.Random) -> Any:
    seconds = [chance.choice([0.01, 0.5, 2.5, 5.0]) for _ in range(chance.randint(1, 2))]
    return "rest", (seconds,), ["rest done"] * (len(seconds) + 1), ()


def _ask(chance: random.Random) -> Any:
    names = [f"signal{number}" for number in range(chance.randint(1, 3))]
    return "ask", (names,), names, [(chance.uniform(0, 4), ("signal", name)) for name in names]


def _tree(chance: random.Random) -> Any:
    width = chance.randint(1, 3)
    leaves = list(range(width))
    return "tree", (width,), [leaves, [sum(leaves)] * 2, 7], ()


def _mending(_: random.Random) -> Any:
    return "mending", (), [0, 1, 2], [(1.0, ("mend",))]


def _trip(chance: random.Random) -> Any:
    return "trip", (_names(chance, 3), "fail"), "FAILURE", ()


def _cancelled(chance: random.Random) -> Any:
    return "trip", (_names(chance, 3), "sleep"), "REVOKED", [(1.0, ("cancel",))]


def _account(chance: random.Random) -> Any:
    names = _names(chance, 4)
    return "account", (names,), [f"{name}-entry done" for name in names], ()


def _concurrent(chance: random.Random) -> Any:
    names = _names(chance, 3)
    return "concurrent", (names,), [*(f"{name}2 done" for name in names), "last done"], ()


def _shared(chance: random.Random) -> Any:
    return "shared", (chance.uniform(0, 0.2),), "had a slot", ()


def _endless(chance: random.Random) -> Any:
    return "endless", (chance.randint(1, 4),), "at an end", ()


def _weave(chance: random.Random) -> Any:
    names = _names(chance, 4)
    seconds = [chance.choice([0.0, 0.05, 0.3]) for _ in names]
    return "weave", (names, seconds, chance.choice([0.01, 0.3, 1.5])), names, ()


def _hurried(chance: random.Random) -> Any:
    patience = chance.choice([0.02, 0.1, 0.5])
    seconds = [patience * chance.uniform(0.2, 2.0) for _ in range(chance.randint(1, 3))]
    return "hurried", (patience, seconds), "hurried", ()


_KINDS: list[Callable[[random.Random], Any]] = [
    _flow,
    _flow,
    _flaky,
    _stubborn,
    _rest,
    _ask,
    _tree,
    _mending,
    _trip,
    _cancelled,
    _account,
    _account,
    _concurrent,
    _shared,
    _endless,
    _weave,
    _weave,
    _hurried,
    _hurried,
]
