"""What is written of a run, as plain values: they need no database driver."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from celery_durable.run import RunState


@dataclass(frozen=True)
class Stored:
    """A stored message, ready to be published again."""

    id: str
    message: bytes
    body: bytes


@dataclass(frozen=True)
class Slot:
    """What a run shares with others of its key.

    Attributes:
        key: the key, of all tasks.
        limit: how many of them may be executed at a time, None for any number.
        rate: how many of them may start in each `period`, None for any number.
        rank: who goes first: the highest, then the oldest.
    """

    key: str
    limit: int | None = None
    rate: int | None = None
    period: timedelta | None = None
    rank: int = 0


NO_SLOT = Slot("")
"""Stands for none where a statement has to name one."""


@dataclass(frozen=True)
class NewChain:
    """The links of a long chain, as Celery keeps them: the last one first.

    Attributes:
        root: the tree of runs that it belongs to, and is deleted with.
        links: their signatures, in this content type.
    """

    id: str
    root: str
    content_type: str
    content_encoding: str
    links: tuple[bytes, ...]


@dataclass(frozen=True)
class NewRun:
    """A run as `enqueue` stores it: what the keeper needs to publish its message again, and when."""

    id: str
    task: str
    queue: str
    priority: int | None
    message: bytes
    body: bytes
    parent: str | None = None
    root: str | None = None
    group: str | None = None
    version: str | None = None
    countdown: timedelta | None = None
    eta: datetime | None = None
    expires: timedelta | None = None
    expires_at: datetime | None = None
    deadline: timedelta | None = None
    deadline_at: datetime | None = None
    publish: bool = True
    slot: Slot | None = None
    chains: tuple[NewChain, ...] = ()


@dataclass(frozen=True)
class Key:
    """A key of one task.

    Attributes:
        kind: when it is to be had again: `idempotency` and `throttle` after `ttl` or when the run is deleted,
            `singleton` when the run is over, `debounce` when the run has started.
        ttl: for how long it stands for its run, None for as long as the run is there.
        delay: how long a debounced run waits for another call.
        longest: how long it waits at most after the first one.
    """

    kind: str
    key: str
    ttl: timedelta | None = None
    delay: timedelta | None = None
    longest: timedelta | None = None


@dataclass(frozen=True)
class PlainMessage:
    """A message to a task without a run, kept until it is published."""

    id: str
    message: bytes
    body: bytes


@dataclass(frozen=True)
class Finish:
    """A run's outcome.

    Attributes:
        cleaned: whether steps were executed after the body was told to stop: it cannot be resumed.
    """

    state: RunState
    result: bytes | None = None
    result_type: str | None = None
    traceback: str | None = None
    meta: bytes | None = None
    error: str | None = None
    reason: str | None = None
    unreported: bool = False
    cleaned: bool = False


@dataclass(frozen=True)
class Part:
    """One member of a chord's header that is over.

    Attributes:
        chord: the id of the header's group.
        task_id: the id of the task.
        position: its index in the header, -1 when it has none.
        state: Celery's word for how it ended.
        result: what the chord's body gets of it, or the error.
    """

    chord: str
    task_id: str
    position: int
    state: str
    result: bytes | None
    result_type: str


@dataclass(frozen=True)
class Look:
    """What a look at a chord found, behind the commit of one of its parts.

    Attributes:
        complete: every part is there, and this look got the claim to start the body.
        uncounted: parts that were counted one by one.
        body: the signature of the body of a claimed chord.
        header: the result ids of a header that is no plain list of tasks.
        content_type: the format of both.
    """

    complete: bool
    uncounted: int
    body: bytes | None = None
    header: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True)
class Finished:
    """What a finish has stored.

    Attributes:
        links: for each run or message that it starts its state, None for one that is not to be sent.
        chord: the look at the chord that the run is a part of.
        woken: its parent, if that waited for it alone, and siblings that waited for its slot.
    """

    links: list[str | None]
    chord: Look | None = None
    woken: list[Stored] = field(default_factory=list)


@dataclass(frozen=True)
class Release:
    """How a run leaves its worker before it is over.

    Attributes:
        slot: what the run shares from now on, if another `task` takes its place.
        cleans: whether it has been told to stop and cleans up: it goes on with that, and ends then.
    """

    outcome: str
    delay: timedelta
    reason: str | None = None
    publish: bool = False
    retries: int | None = None
    error: str | None = None
    traceback: str | None = None
    result: bytes | None = None
    result_type: str | None = None
    body: bytes | None = None
    message: bytes | None = None
    task: str | None = None
    queue: str | None = None
    priority: int | None = None
    discard: str = "none"
    compensates: bool | None = False
    slot: Slot | None = None
    cleans: bool = False


SENT_AT_ONCE = 500
"""Children whose messages the parent's worker sends; the keeper sends those behind them."""


@dataclass(frozen=True)
class Children:
    """What a wait for children starts.

    Attributes:
        runs: the children, in their order.
        abreast: how many of them may be executed at a time, None for all.
        detached: whether they go on when their parent is cancelled.
    """

    runs: Sequence[NewRun]
    parent: str
    abreast: int | None = None
    detached: bool = False


@dataclass(frozen=True)
class Wait:
    """A wait as it is stored when it is met.

    Attributes:
        kind: `sleep`, `signal` or `children`.
        awaits: the signal's name, or the id of a wait of children.
        delay: how long, or `until` when; both None for a wait that nothing but its event ends.
        output: what is kept with it until then.
        compensates: whether the run has registered compensations so far; None: not known.
        late: what is stored as its error when nothing came in time, or results larger than `most` bytes
            together; with its codec and in one line.
        again: whether a resumed run takes up this wait for children, and starts those again that failed.
        version: the code's version, which these get.
    """

    key: str
    seq: int
    kind: str
    digest: bytes
    arguments: str
    awaits: str | None = None
    delay: timedelta | None = None
    until: datetime | None = None
    output: bytes | None = None
    clock: list[datetime] | None = None
    late: bytes | None = None
    late_codec: str | None = None
    late_error: str | None = None
    most: int = 0
    compensates: bool | None = False
    again: bool = False
    version: str | None = None


def closed(fence: uuid.UUID) -> uuid.UUID:
    """Return the fence that a release leaves behind: known to its attempt, matched by no write."""
    return uuid.uuid5(fence, "closed")
