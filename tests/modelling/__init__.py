"""What the store should do, in memory and without any SQL: the oracle of the property test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid

FINAL = ("succeeded", "failed", "cancelled")
EXECUTED = ("running", "cancelling")
FINISHED = ("ok", "error")


@dataclass
class Step:
    """One checkpoint."""

    outcome: str
    value: bytes
    tries: int
    spent: int
    seq: int


@dataclass
class Worker:
    """A worker process, and its row while it has one."""

    token: uuid.UUID
    row: int | None


@dataclass
class Run:
    """A run. Times are minutes of the model's clock.

    Attributes:
        closed_by: the attempt that finished it, which may say so again.
        left_by: the attempt whose release is the last thing that happened to it: it may say so again, too.
        compensates: whether it has compensations; None while nobody can know.
        ending: how it ends once they are made.
        recoveries_before: how often it had lost its worker before it came to them.
    """

    id: str
    state: str
    due: int | None
    published: bool
    expires: int | None = None
    fence: uuid.UUID | None = None
    row: int | None = None
    attempts: int = 0
    retries: int = 0
    recoveries: int = 0
    generation: int = 0
    cancel: bool = False
    result: bytes | None = None
    closed_by: uuid.UUID | None = None
    left_by: uuid.UUID | None = None
    finished: int | None = None
    deleted: bool = False
    compensates: bool | None = False
    ending: str | None = None
    recoveries_before: int = 0
    steps: dict[str, Step] = field(default_factory=dict)

    def claim(self, fence: uuid.UUID, row: int) -> None:
        self.state = "running" if self.ending is None else "cancelling"
        self.fence, self.row, self.due = fence, row, None
        self.left_by, self.compensates = None, self.compensates or None
        self.attempts += 1

    def leave(self, state: str, now: int, *, due: int | None = None, published: bool = False) -> None:
        """Stop being executed; a run that somebody wants to stop is cancelled instead."""
        if self.cancel and self.ending is None and state not in FINAL:
            state = "cancelled"
        if state in ("failed", "cancelled") and self._takes_back_first(state):
            state, due, published = "pending", now, False
        self.state, self.fence, self.row, self.left_by = state, None, None, None
        self.finished = now if state in FINAL else None
        self.due, self.published = (None, self.published) if state in FINAL else (due, published)

    def _takes_back_first(self, state: str) -> bool:
        """Say whether it may have compensations that nobody who ends it from outside can know."""
        if self.compensates is False:
            return False
        if self.ending is not None:
            if state == "failed":  # once too often: what is left is the operator's
                self._count_again()
            return state != "failed"
        stored = any(step.outcome == "ok" for step in self.steps.values())
        if self.attempts == 0 or not (self.compensates or stored):
            return False
        self.ending = state
        self.recoveries, self.recoveries_before = 0, self.recoveries
        return True

    def _count_again(self) -> None:
        self.recoveries, self.recoveries_before = self.recoveries + self.recoveries_before, 0

    def end(self, state: str, now: int, result: bytes | None = None) -> None:
        self.closed_by, self.result = self.fence, result
        self.leave(state, now)

    def take_back(self, now: int, result: bytes, *, success: bool) -> None:
        """End as it was to end, or as failed if a compensation has."""
        assert self.ending is not None
        if self.ending == "cancelled":
            self.result = result
        state = self.ending if success else "failed"
        self.ending = None if success else self.ending
        self.compensates = False
        self._count_again()
        self.closed_by = self.fence
        self.leave(state, now)

    def lose(self, now: int, limit: int, exhausted: bytes, *, published: bool) -> None:
        """Lose the worker that executed it."""
        self.recoveries += 1
        over = self.recoveries > limit
        if over and self.ending != "failed":  # a failed run keeps its error
            self.result = exhausted
        stops = self.cancel and self.ending is None
        self.leave("failed" if over and not stops else "pending", now, due=now, published=published)

    def discard_errors(self) -> None:
        """Put aside what a retry of the whole run should try again."""
        last = max((step.seq for step in self.steps.values() if step.outcome == "ok"), default=0)
        for step in self.steps.values():
            if step.outcome == "error" and step.seq > last:
                step.outcome, step.spent = "discarded", step.tries

    def resume(self) -> None:
        self.discard_errors()
        self.state, self.published, self.finished, self.compensates = "pending", True, None, None
        self.result = self.result if self.ending == "failed" else None
        self.retries = self.recoveries = 0
        self.generation += 1
        self.cancel, self.expires, self.closed_by, self.left_by = False, None, None, None


@dataclass
class Attempt:
    """One claim, as the worker that made it sees it: also long after another one has the run.

    Attributes:
        view: the steps it knows: the history of its claim and what it has stored itself.
        finish: the state and result it ended its run with.
        foreign_start: the at-most-once step that an attempt before it began, if there is one.
        takes_back: whether it was claimed to make the run's compensations.
    """

    run: Run
    key: int
    fence: uuid.UUID
    worker: Worker
    pid: int
    view: dict[str, Step]
    seq: int
    foreign_start: str | None
    takes_back: bool = False
    finish: tuple[str, bytes] | None = None

    @property
    def holds(self) -> bool:
        return self.run.fence == self.fence

    @property
    def next_key(self) -> str:
        return f"step{sum(step.outcome in FINISHED for step in self.view.values())}"
