"""What the store should do, in memory and without any SQL: the oracle of the property test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid

FINAL = ("succeeded", "failed", "cancelled")
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
    steps: dict[str, Step] = field(default_factory=dict)

    def claim(self, fence: uuid.UUID, row: int) -> None:
        self.state, self.fence, self.row, self.due = "running", fence, row, None
        self.left_by = None
        self.attempts += 1

    def leave(self, state: str, now: int, *, due: int | None = None, published: bool = False) -> None:
        """Stop being executed; a run that somebody wants to stop is cancelled instead."""
        if self.cancel and state not in FINAL:
            state = "cancelled"
        self.state, self.fence, self.row, self.left_by = state, None, None, None
        self.finished = now if state in FINAL else None
        self.due, self.published = (None, self.published) if state in FINAL else (due, published)

    def end(self, state: str, now: int, result: bytes | None = None) -> None:
        self.closed_by, self.result = self.fence, result
        self.leave(state, now)

    def lose(self, now: int, limit: int, exhausted: bytes, *, published: bool) -> None:
        """Lose the worker that executed it."""
        self.recoveries += 1
        over = self.recoveries > limit
        if over:
            self.result = exhausted
        self.leave("failed" if over and not self.cancel else "pending", now, due=now, published=published)

    def discard_errors(self) -> None:
        """Put aside what a retry of the whole run should try again."""
        last = max((step.seq for step in self.steps.values() if step.outcome == "ok"), default=0)
        for step in self.steps.values():
            if step.outcome == "error" and step.seq > last:
                step.outcome, step.spent = "discarded", step.tries

    def resume(self) -> None:
        self.discard_errors()
        self.state, self.published, self.finished, self.result = "pending", True, None, None
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
    """

    run: Run
    key: int
    fence: uuid.UUID
    worker: Worker
    pid: int
    view: dict[str, Step]
    seq: int
    foreign_start: str | None
    finish: tuple[str, bytes] | None = None

    @property
    def holds(self) -> bool:
        return self.run.fence == self.fence

    @property
    def next_key(self) -> str:
        return f"step{sum(step.outcome in FINISHED for step in self.view.values())}"
