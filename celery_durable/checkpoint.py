"""Checkpoints: the stored outcomes of a run's steps, and the keys they are found by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

OK = "ok"
ERROR = "error"
TRYING = "trying"
STARTED = "started"
DISCARDED = "discarded"
ABANDONED = "abandoned"
WAITING = "waiting"

SLEEP = "sleep"
SIGNAL = "signal"
CHILDREN = "children"

AGAIN = "again"
"""The codec of a wait for children that a resumed run is to take up again: it keeps the wait's id."""


@dataclass(frozen=True)
class Checkpoint:
    """One stored step.

    `outcome` is `ok` or `error` when the step is finished, `trying` after a failed try that will be
    retried, `started` for the marker of an at-most-once step, and `discarded` for an error that a retry
    of the whole run has put aside. `tries` counts every time the body failed or finished, and `spent`
    says how many of them belong to a policy that was already used up. A wait has a `kind`, and a `due` time
    if it ends by itself; its outcome is `waiting` until what it waits for has come. An `async def` step was
    cancelled `too_late` if its outcome was being stored by then.
    """

    key: str
    seq: int
    outcome: str
    output: bytes | None
    codec: str | None
    digest: bytes
    arguments: str
    tries: int
    spent: int
    clock: tuple[datetime, ...] = ()
    kind: str | None = None
    due: datetime | None = None
    too_late: bool | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the body itself has cancelled this `async def` step, and does so again at a replay."""
        return self.outcome == ERROR and self.codec == ABANDONED

    @property
    def finished(self) -> bool:
        """Whether a replay returns (or raises) this instead of running the step."""
        return self.outcome in (OK, ERROR)


@dataclass  # not frozen: that would cost each step twelve calls
class StepWrite:
    """What one write of a step stores; a retried write is recognised by attempt, key and tries.

    `calls` is the evidence, as JSON, of calls that its body made to others. `behind` is the number of the
    latest outcome that an overlapping call could know of; None for the one before its own.
    """

    key: str
    seq: int
    outcome: str
    output: bytes | None
    codec: str | None
    digest: bytes
    arguments: str
    tries: int
    spent: int
    error: str | None
    clock: list[datetime] | None
    seconds: float
    calls: list[str] | None = None
    behind: int | None = None


def occurrence(name: str, count: int) -> str:
    """Return the key of the `count`-th call of a step in its run: `thumbnail`, `thumbnail#2`, ..."""
    return name if count == 1 else f"{name}#{count}"
