"""What a run is: its states, what a claim hands to an attempt, and what Celery calls each state."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID


class RunState(str, Enum):
    """The states a run can be stored in; *stuck*, *orphaned* and *exhausted* are derived, never stored."""

    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether a run in this state is over."""
        return self in FINAL_STATES

    def __str__(self) -> str:
        return self.value


FINAL_STATES = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})

_CELERY_STATES = {
    "pending": "PENDING",
    "running": "STARTED",
    "cancelling": "STARTED",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "REVOKED",
}


def celery_state(state: str, reason: str | None) -> str:
    """Return Celery's word for a stored state: RETRY and SUSPENDED tell the two kinds of waiting apart."""
    if state == RunState.WAITING.value:
        return {"retry": "RETRY", "timer": "PENDING"}.get(reason or "", "SUSPENDED")
    return _CELERY_STATES[state]


@dataclass(frozen=True)
class Claim:
    """A lease on a run: what one attempt needs to know, and the fence that each of its writes must match."""

    key: int
    id: str
    task: str
    fence: UUID
    attempt: int
    generation: int
    retries: int
    recoveries: int
    seed: UUID
    cancel_requested: bool
    claimed_at: datetime
    revision: int
    replacements: int
    body: bytes | None
    message: bytes | None
    slot: str | None = None
    link: Mapping[str, Any] | None = None
    parent: str | None = None
    wait: UUID | None = None
    abreast: int | None = None
    deadline: datetime | None = None
    ending: str | None = None
    ending_reason: str | None = None
    rollbacks: Sequence[str] | None = None
    result: bytes | None = None
    result_type: str | None = None

    @property
    def rolls_back(self) -> bool:
        """Whether this attempt is to take back what the run has done, and nothing else."""
        return self.ending is not None


class Refusal(str, Enum):
    """Why a claim was refused; each one says what becomes of the message."""

    UNKNOWN = "unknown"
    FINAL = "final"
    OWNED = "owned"
    WAITING = "waiting"
    EXPIRED = "expired"
    NO_WORKER = "no live worker row"
    SLOTTED = "one of those that need a slot"
    SLOT = "waiting for a slot"
    VERSION = "one for a worker of its version"
