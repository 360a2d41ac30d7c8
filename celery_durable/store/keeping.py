"""What the keeper reads and writes: workers, the leader lease, timers, orphans, lost messages, retention."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.store import queries
from celery_durable.store.slots import granted
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from celery_durable.store.connections import Connection


@dataclass(frozen=True)
class Recovered:
    """A run taken from a lost worker: pending again, or over."""

    id: str
    state: str
    recoveries: int
    message: bytes
    body: bytes
    result: bytes | None = None
    result_type: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Unclaimed:
    """A published run that nobody has claimed within its check time."""

    id: str
    queue: str
    priority: int | None
    published_at: datetime
    checks: int
    now: datetime


class Lead(NamedTuple):
    """Whether a worker leads, and what it sees.

    Attributes:
        term: the leader lease's term; None when another worker leads.
        now: the database's time; None when there is no worker at all.
        beats: every worker's heartbeat counter.
    """

    term: int | None
    now: datetime | None
    beats: dict[int, int]


@dataclass(frozen=True)
class Parent:
    """A run that waits for its children.

    Attributes:
        ready: all of them are over.
        abreast: how many may be executed at a time, where some wait for others to end.
    """

    key: int
    id: str
    wait: uuid.UUID
    ready: bool
    abreast: int | None


@dataclass(frozen=True)
class Look:
    """The leader's small query: what there is to do."""

    next_timer: float | None
    unpublished: bool
    unclaimed: bool
    outbox: bool
    unreported: bool
    chords: bool
    parents: bool
    cascading: bool
    overdue: bool
    slots: bool
    leading: bool


class Room(NamedTuple):
    """What one look at the keys of slots has found.

    Attributes:
        keys: those that have a slot for who waits.
        last: the key to go on from; None at the end.
        opens_in: seconds until the rate of one lets the next run start; None where no rate stands in the way.
    """

    keys: list[str]
    last: str | None
    opens_in: float | None


class KeeperStore:
    """Statements of the keeper on a connection of its own; nothing here waits for an outage to end.

    Arguments:
        connection: a connection in autocommit mode that nobody else uses.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connection: Connection, *, schema: str, check: timedelta) -> None:
        self.connection = connection
        self._sql = queries.load("keeper", schema)
        self._waits = queries.load("waits", schema)
        self._cancel = queries.load("inspection", schema)["cancel"]
        self._hold = queries.load("inspection", schema)["hold"]
        self._unpublish = queries.load("runs", schema)["unpublish"]
        self._slots = queries.load("slots", schema)
        self._open_chords = queries.load("chords", schema)["overdue"]
        self._check = check

    def _all(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.connection.execute(self._sql[name], parameters).fetchall()

    def register(
        self, token: uuid.UUID, *, hostname: str, pid: int, version: str, code: str | None = None
    ) -> int:
        """Bring a worker process to life; return the id of its row.

        `version` is that of this package, `code` that of the application.
        """
        rows = self._all(
            "register_worker", token=token, hostname=hostname, pid=pid, version=version, code=code
        )
        return int(rows[0]["id"])

    def beat(self, token: uuid.UUID, *, reserved: int) -> bool | None:
        """Beat; return whether other workers' help is wanted with due runs, None when declared dead."""
        rows = self._all("beat", token=token, reserved=reserved)
        return bool(rows[0]["backlog"]) if rows else None

    def retire(self, token: uuid.UUID) -> list[str]:
        """End a worker cleanly; return the ids of the runs it still owned, which are handed on."""
        return [row["id"] for row in self._all("retire_worker", token=token)]

    def lead(self, token: uuid.UUID, lease: timedelta) -> Lead:
        """Take or renew the leader lease, unless another worker leads, and see all heartbeats."""
        rows = self._all("lead", token=token, lease=lease)
        term, now = (rows[0]["term"], rows[0]["now"]) if rows else (None, None)
        return Lead(term, now, {row["id"]: row["beat"] for row in rows})

    def look(self, term: int) -> Look:
        """See whether anything is to be done."""
        return Look(**self._all("look", term=term)[0])

    def bury(self, term: int, dead: dict[int, int]) -> list[int]:
        """Remove the rows of workers whose counter still stands where it stood a lease ago."""
        return [row["id"] for row in self._all("bury", term=term, ids=list(dead), beats=list(dead.values()))]

    def recover_orphans(
        self, term: int, *, limit: int, max_recoveries: int, result: bytes, result_type: str
    ) -> list[Recovered]:
        """Take runs from workers that are gone."""
        rows = self._all(
            "recover_orphans",
            term=term,
            limit=limit,
            max_recoveries=max_recoveries,
            result=result,
            result_type=result_type,
        )
        return [Recovered(**row) for row in rows]

    def wake(self, limit: int) -> list[Stored]:
        """Turn waiting runs that are due into pending ones; the caller publishes them."""
        return [Stored(**row) for row in self._all("wake", limit=limit, check=self._check)]

    def parents(self, after: int, limit: int) -> list[Parent]:
        """Return runs that wait for children, by their keys from `after` on."""
        return [Parent(**row) for row in self._all("parents", after=after, limit=limit)]

    def wake_parent(self, parent: Parent) -> list[Stored]:
        """Wake a run whose children are over, or those of them that wait for a free slot."""
        parameters = {
            "parent": parent.id,
            "wait": parent.wait,
            "abreast": parent.abreast,
            "check": self._check,
        }
        if parent.ready:
            rows = self.connection.execute(self._waits["wake_parent"], parameters).fetchall()
        else:
            with self.connection.transaction():
                self.connection.execute(self._waits["hold_parent"], parameters)
                rows = self.connection.execute(self._waits["next_child"], parameters).fetchall()
        return [Stored(**row) for row in rows]

    def overdue(self, limit: int) -> list[str]:
        """Return runs that are not over at their deadline."""
        return [row["id"] for row in self._all("overdue", limit=limit)]

    def cascade(self, limit: int, *, reason: str) -> int:
        """Cancel children of cancelled runs; return how many were found, 0 when all have been told.

        Parents and children are locked together and judged again: a parent that is being resumed goes on with
        the children it has.
        """
        found = self._all("forsaken", limit=limit, ids=None)
        if not found:
            self._all("cascaded")
            return 0
        children = [row["id"] for row in found]
        with self.connection.transaction():
            self.connection.execute(self._hold, {"ids": [*children, *(row["parent"] for row in found)]})
            still = [row["id"] for row in self._all("forsaken", limit=limit, ids=children)]
            self.cancel(still, cause="parent", reason=reason)
        return len(found)

    def cancel(self, ids: Sequence[str], *, cause: str, reason: str) -> None:
        """Cancel runs, as an operator would."""
        parameters = {
            "ids": list(ids),
            "operation": uuid.uuid4(),
            "actor": None,
            "reason": reason,
            "cause": cause,
            "terminate": False,
        }
        self.connection.execute(self._cancel, parameters)

    def publishable(self, limit: int) -> list[Stored]:
        """Take pending runs that the broker does not know of; the caller publishes them."""
        return [Stored(**row) for row in self._all("publishable", limit=limit, check=self._check)]

    def unpublish(self, ids: Sequence[str], delay: timedelta) -> None:
        """The broker did not take these: try again after `delay`."""
        self.connection.execute(self._unpublish, {"ids": list(ids), "delay": delay})

    def expire(self, limit: int) -> list[str]:
        """End runs that nobody claimed before they expired."""
        return [row["id"] for row in self._all("expire_due", limit=limit)]

    def unclaimed(self, limit: int) -> list[Unclaimed]:
        """Return published runs whose check time has come."""
        return [Unclaimed(**row) for row in self._all("unclaimed", limit=limit)]

    def claimed_up_to(self, queue: str, priority: int | None, grace: timedelta) -> datetime | None:
        """Return the latest publish time among runs of a queue that were claimed at least `grace` ago."""
        rows = self._all("claims_of_queue", queue=queue, priority=priority, grace=grace)
        at: datetime | None = rows[0]["published_at"]
        return at

    def reservations(self) -> tuple[int, datetime | None]:
        """Return how many messages live workers hold unstarted, and when the oldest report was made."""
        row = self._all("reservations")[0]
        return int(row["reserved"]), row["oldest"]

    def recheck(self, verdicts: dict[str, bool]) -> list[Stored]:
        """Record which unclaimed runs are lost; return those, for the caller to publish."""
        rows = self._all("recheck", ids=list(verdicts), lost=list(verdicts.values()), check=self._check)
        return [Stored(row["id"], row["message"], row["body"]) for row in rows if row["lost"]]

    def unreported(self, limit: int) -> list[Recovered]:
        """Return failed and cancelled runs whose callbacks, chain and chord nobody has told."""
        return [Recovered(**row) for row in self._all("unreported", limit=limit)]

    def open_chords(self, limit: int) -> list[str]:
        """Return chords that have been open for a while, each of them ever more rarely."""
        return [row["id"] for row in self.connection.execute(self._open_chords, {"limit": limit}).fetchall()]

    def outbox(self, *, age: timedelta, limit: int) -> list[tuple[int, Stored]]:
        """Return messages to plain tasks that nobody has published yet."""
        rows = self._all("outbox_take", age=age, limit=limit)
        return [(row["key"], Stored(row["id"], row["message"], row["body"])) for row in rows]

    def outbox_done(self, keys: Sequence[int]) -> None:
        """Forget published messages of the outbox."""
        self.connection.execute(self._sql["outbox_done"], {"keys": list(keys)})

    def prune(self, age: timedelta, limit: int, *, failed_age: timedelta | None = None) -> int:
        """Delete whole trees of final runs older than `age` (failed ones: `failed_age`); return how many."""
        rows = self._all("prune", age=age, failed_age=age if failed_age is None else failed_age, limit=limit)
        return int(rows[0]["runs"])

    def prunable(self, age: timedelta, *, failed_age: timedelta | None = None) -> int:
        """Return how many runs `prune` would delete."""
        rows = self._all("prunable", age=age, failed_age=age if failed_age is None else failed_age)
        return int(rows[0]["runs"])

    def slots_with_room(self, after: str, limit: int) -> Room:
        """Look at keys, after one, that somebody waits for."""
        given = {"slot": after, "limit": limit, "check": self._check}
        rows = self.connection.execute(self._slots["open"], given).fetchall()
        keys = [row["slot"] for row in rows if row["open"]]
        closed = [row["opens_in"] for row in rows if row["opens_in"] is not None and not row["open"]]
        return Room(keys, rows[-1]["slot"] if len(rows) == limit else None, min(closed, default=None))

    def grant(self, slot: str) -> list[Stored]:
        """Wake who waits for a slot of this key, as many as it has; the caller publishes them."""
        return granted(self.connection, self._slots, slot, self._check)
