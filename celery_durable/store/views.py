"""What inspection shows: a run, its attempts, steps and events, as they stood at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from celery_durable.run import RunState, celery_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from uuid import UUID


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a list.

    Attributes:
        key: grows with every run; a page of a list ends at one and the next begins before it.
        due: when a waiting run wakes, or when a pending run's message is next looked for.
        hostname: the worker of the latest attempt.
        error: what the latest attempt ended with, in one line.
        awaits: the signal that a waiting run waits for.
        orphaned: whether the run is executing for a worker that is gone.
        now: the database's time of this view.
        state: what it is doing: `cancelling` as long as it takes back what it has done.
        stored_state: what its row says: while it does so and waits for a worker, `pending` or `waiting`.
    """

    key: int
    id: str
    task: str
    queue: str
    priority: int | None
    state: RunState
    reason: str | None
    due: datetime | None
    published_at: datetime | None
    custom_state: str | None
    attempt: int
    generation: int
    retries: int
    recoveries: int
    cancel_requested: bool
    parent: str | None
    root: str | None
    group: str | None
    version: str | None
    tags: Any
    progress: Any
    created_at: datetime
    started_at: datetime | None
    claimed_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    hostname: str | None
    pid: int | None
    error: str | None
    orphaned: bool
    now: datetime
    awaits: str | None = None
    ending: str | None = None
    stored_state: RunState | None = None

    def __post_init__(self) -> None:
        stored = RunState(self.stored_state or self.state)
        rolls_back = self.ending is not None and self.finished_at is None
        object.__setattr__(self, "stored_state", stored)
        object.__setattr__(self, "state", RunState.CANCELLING if rolls_back else stored)

    @property
    def celery_state(self) -> str:
        """What `AsyncResult.state` says of this run."""
        if self.custom_state and self.state is RunState.RUNNING:
            return self.custom_state
        return celery_state(self.state.value, self.reason)


@dataclass(frozen=True, kw_only=True)
class AttemptView:
    """One claim of a run; `seconds` is how long it took, or has taken so far."""

    number: int
    hostname: str
    pid: int
    started_at: datetime
    ended_at: datetime | None
    seconds: float
    outcome: str | None
    error: str | None
    traceback: str | None


@dataclass(frozen=True, kw_only=True)
class TryView:
    """One failed try of a step that was tried again: when it ended, after how many seconds and with what."""

    at: datetime
    seconds: float
    attempt: int
    error: str | None

    @classmethod
    def of(cls, stored: dict[str, Any]) -> TryView:
        """Return a try from its stored form."""
        return cls(**{**stored, "at": datetime.fromtimestamp(stored["at"], timezone.utc)})


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One stored step: `attempt` is the one that stored it, `seconds` how long its last try took.

    A wait has a `kind`: `sleep`, `signal` or `children`; and a `due` time if it ends by itself. `earlier` are
    the failed tries before the last one, oldest first: the latest fifty of them.
    """

    key: str
    seq: int
    outcome: str
    arguments: str
    attempt: int
    tries: int
    spent: int
    error: str | None
    seconds: float
    stored_at: datetime
    codec: str | None
    output_bytes: int | None
    kind: str | None = None
    due: datetime | None = None
    earlier: tuple[TryView, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChildView:
    """One run that a run has started; `siblings` is how many there are in all."""

    id: str
    task: str
    state: str
    reason: str | None
    siblings: int


@dataclass(frozen=True, kw_only=True)
class SignalView:
    """One signal that was sent to a run; `taken_by` is the key of the wait that received it, if one has."""

    name: str
    sent_at: datetime
    actor: str | None
    taken_by: str | None
    payload_bytes: int


@dataclass(frozen=True, kw_only=True)
class EventView:
    """Something that was done to a run from outside: by the keeper, or by the operator `actor`."""

    at: datetime
    kind: str
    actor: str | None
    detail: dict[str, Any]


@dataclass(frozen=True)
class KeyView:
    """A key that stands for a run: an idempotency key, a singleton's, a throttle's or a debounce's."""

    kind: str
    key: str
    expires_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class RunView(RunSummary):
    """The whole story of a run. Payloads are only measured: values are for whoever may read them.

    Attributes:
        forked_from: the run this one began as a fork of.
        forks: runs that began as forks of this one.
        children: runs that it has started, at most twenty: those that are not over or did not succeed first.
        keys: keys that a call would be given this run for.
        slot: the key of the runs it shares with: of these `slot_limit` are executed at a time, and
            `slot_rate` start in each `slot_period`.
        deadline: when it is cancelled if it is not over by then.
        rollbacks: the steps of its compensations, as they were registered; None while they are not known.
    """

    traceback: str | None
    result_type: str | None
    result_bytes: int | None
    body_bytes: int
    forked_from: str | None = None
    slot: str | None = None
    slot_limit: int | None = None
    slot_rate: int | None = None
    slot_period: timedelta | None = None
    deadline: datetime | None = None
    rollbacks: Sequence[str] | None = None
    forks: tuple[str, ...] = ()
    keys: tuple[KeyView, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    steps: tuple[StepView, ...] = ()
    events: tuple[EventView, ...] = ()
    signals: tuple[SignalView, ...] = ()
    children: tuple[ChildView, ...] = ()


@dataclass(frozen=True)
class Page:
    """Some runs, newest first; `next` is the `before` of the page that follows, None at the end.

    A `partial` page was not filled because only so many runs were looked at; `next` goes on behind them.
    """

    runs: tuple[RunSummary, ...]
    next: int | None
    partial: bool = False


@dataclass(frozen=True)
class Match:
    """A run whose id begins with what was asked for."""

    id: str
    task: str
    state: str
    created_at: datetime


@dataclass(frozen=True)
class Count:
    """How many runs are in one state for one reason."""

    state: str
    reason: str | None
    runs: int


@dataclass(frozen=True)
class QueueStats:
    """Pending runs of one queue; `seconds` is how long the first of them has waited for a worker."""

    queue: str
    runs: int
    seconds: float | None


@dataclass(frozen=True)
class TaskStats:
    """Runs of one task that ended within the window, and the seconds from their start to their end.

    Half of them took at most `median_seconds`, 95 of 100 at most `slow_seconds`.
    """

    task: str
    succeeded: int
    failed: int
    cancelled: int
    median_seconds: float | None
    slow_seconds: float | None


@dataclass(frozen=True)
class SlotStats:
    """How many runs of a concurrency key are executed, and how many wait for a slot."""

    slot: str
    running: int
    waiting: int


@dataclass(frozen=True)
class WorkerStats:
    """A worker process: how many runs it executes, and the seconds since its last heartbeat."""

    hostname: str
    pid: int
    silent: float
    runs: int


@dataclass(frozen=True)
class Stats:
    """How the system is doing; `tasks` covers the last `window_seconds`."""

    window_seconds: float
    states: tuple[Count, ...]
    queues: tuple[QueueStats, ...]
    tasks: tuple[TaskStats, ...]
    workers: tuple[WorkerStats, ...]
    slots: tuple[SlotStats, ...] = ()


@dataclass(frozen=True)
class Replayable:
    """What a replay of a run begins with.

    Attributes:
        ending: how it ends once it has taken back what it had done; None where it does not.
        error: what its body has raised last, in one line.
    """

    key: int
    id: str
    task: str
    state: str
    version: str | None
    attempt: int
    generation: int
    retries: int
    recoveries: int
    seed: UUID
    revision: int
    replacements: int
    message: bytes
    body: bytes
    ending: str | None
    now: datetime
    error: str | None


@dataclass(frozen=True)
class Payloads:
    """The payloads of a run as they are stored: what an export decodes."""

    message: bytes
    body: bytes
    result: bytes | None
    result_type: str | None
    outputs: tuple[tuple[str, str, bytes | None, str | None], ...]


@dataclass(frozen=True)
class Change:
    """What an operation did to one run.

    Attributes:
        before: the state the operation found; None when there is no such run.
        state: the state it left.
        changed: whether this operation changed anything.
        message: the stored message to publish, after a resume.
        children: how many children a resumed run starts again with it.
        stopping: whether it cannot be resumed yet, because its children are still being cancelled.
        other: the live run that has its key, of a singleton that cannot be resumed beside it.
    """

    id: str
    before: RunState | None = None
    state: RunState | None = None
    changed: bool = False
    generation: int | None = None
    message: bytes | None = field(default=None, repr=False)
    body: bytes | None = field(default=None, repr=False)
    children: int = 0
    stopping: bool = False
    other: str | None = None
