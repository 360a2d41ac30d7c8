"""Waits in the middle of a body: one transaction and one round trip each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_durable import checkpoint as outcomes
from celery_durable.exceptions import LeaseLostError
from celery_durable.store import in_hand, queries
from celery_durable.store.bulk import batches, columns_of, complete, size_of
from celery_durable.store.resuming import put_aside
from celery_durable.store.writes import SENT_AT_ONCE, Stored, Wait, closed

if TYPE_CHECKING:
    import uuid
    from datetime import timedelta

    from celery_durable.run import Claim
    from celery_durable.store.connections import Connection, Connections
    from celery_durable.store.writes import Children


@dataclass(frozen=True)
class Waited:
    """What became of a wait.

    Attributes:
        left: the run has left its worker: this attempt is over.
        stop: the run is asked to stop, and waits for nothing any more.
        outcome: `ok` or `error` when what it waited for is there, `waiting` when its time is over.
        remaining: seconds that a wait on the worker has to last.
        started: children that were stored, and in which state.
        restarted: messages of children that have begun a new generation.
    """

    left: bool
    stop: bool
    outcome: str = outcomes.WAITING
    output: bytes | None = None
    codec: str | None = None
    remaining: float | None = None
    started: dict[str, str] = field(default_factory=dict)
    restarted: list[Stored] = field(default_factory=list)


class WaitStore:
    """Statements of waits, each fenced and each safe to repeat after a lost answer.

    Arguments:
        connections: where to write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._schema = schema
        self._sql = queries.load("waits", schema)
        self._runs = queries.load("runs", schema)
        self._inspection = queries.load("inspection", schema)
        self._check = check

    def begin(self, run: int, fence: uuid.UUID, wait: Wait) -> Waited:
        """Store a wait that is waited for on the worker; return how long that is.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = _parameters(run, fence, wait)
        row = self._connections.patiently(
            lambda connection: connection.execute(self._sql["wait"], parameters).fetchone()
        )
        if row is None or not row["held"]:
            raise LeaseLostError(step=wait.key)
        return Waited(left=False, stop=row["cancel_requested"], remaining=row["remaining"])

    def leave(self, run: int, fence: uuid.UUID, wait: Wait, children: Children | None = None) -> Waited:
        """Store a wait, start its children, and leave the worker, unless what it waits for is there.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = _parameters(run, fence, wait)

        def work(connection: Connection) -> tuple[Any, list[Any]]:
            with connection.pipeline():
                if children is not None:  # or an error on the way would commit a wait without its children
                    connection.execute("begin")
                connection.execute(self._sql["wait"], parameters)
                started = [] if children is None else self._start(connection, parameters, children)
                if wait.kind == outcomes.SIGNAL:
                    connection.execute(self._sql["receive"], parameters)
                elif wait.kind == outcomes.CHILDREN:
                    connection.execute(self._sql["collect"], parameters)
                left = connection.execute(self._sql["leave"], parameters)
                in_hand.put_away(connection, self._schema, run, fence)
                if children is not None:
                    connection.execute("commit")
            return left.fetchone(), [row for cursor in started for row in cursor.fetchall()]

        row, started = self._connections.patiently(work)
        return _waited(wait, row, started={child["id"]: child["state"] for child in started})

    def take_up(self, run: int, fence: uuid.UUID, wait: Wait) -> Waited:
        """Wait for children again, those of them that did not succeed beginning anew; else as `leave`.

        In one transaction, but not in one round trip: this happens once for each resume of the run.
        """
        parameters = {**_parameters(run, fence, wait), "check": self._check, "at_once": SENT_AT_ONCE}
        audit = {"operation": fence, "actor": None, "reason": "its parent was resumed"}

        def work(connection: Connection) -> tuple[Any, list[Any]]:
            with connection.transaction():
                connection.execute(self._sql["wait"], parameters)
                restarted = connection.execute(self._sql["start_again"], parameters).fetchall()
                if anew := [row["key"] for row in restarted if row["anew"]]:
                    connection.execute(self._sql["forget"], {"keys": anew})
                put_aside(connection, self._inspection, restarted, audit)
                connection.execute(self._sql["collect"], parameters)
                left = connection.execute(self._sql["leave"], parameters).fetchone()
                in_hand.put_away(connection, self._schema, run, fence)
            return left, restarted

        row, restarted = self._connections.patiently(work)
        messages = [Stored(one["id"], one["message"], one["body"]) for one in restarted if one["publish"]]
        return _waited(wait, row, restarted=messages)

    def _start(self, connection: Connection, parameters: dict[str, Any], children: Children) -> list[Any]:
        shared = {
            **parameters,
            "check": self._check,
            "abreast": children.abreast,
            "detached": children.detached,
        }
        cursors, before = [], 0
        for batch in batches(children.runs, size_of):
            columns = {**columns_of(batch), "parent": children.parent, "before": before}
            cursors.append(connection.execute(self._sql["start"], {**shared, **columns}))
            before += len(batch)
        holder = {"holder": parameters["run"], "fence": parameters["fence"], "check": self._check}
        complete(connection, self._runs, children.runs, holder)
        return cursors

    def follow(self, connection: Connection, child: Claim) -> list[Any]:
        """Look, in transactions that follow the child's end, whom it wakes; for `followed`."""
        parameters = {
            "parent": child.parent,
            "wait": child.wait,
            "abreast": child.abreast,
            "check": self._check,
        }
        cursors = [connection.execute(self._sql["wake_parent"], parameters)]
        if child.abreast is not None:
            connection.execute("begin")
            connection.execute(self._sql["hold_parent"], parameters)
            cursors.append(connection.execute(self._sql["next_child"], parameters))
            connection.execute("commit")
        return cursors

    def wake(self, child: Claim) -> list[Stored]:
        """Wake whom the end of this child wakes, outside of the write that ended it."""

        def work(connection: Connection) -> list[Stored]:
            with connection.pipeline():
                cursors = self.follow(connection, child)
            return followed(cursors)

        return self._connections.patiently(work)


def followed(cursors: list[Any]) -> list[Stored]:
    """Return the messages of the runs that were woken."""
    return [Stored(**row) for cursor in cursors for row in cursor.fetchall()]


def _waited(wait: Wait, row: Any, **more: Any) -> Waited:
    if row is None or not (row["left"] or row["held"]):
        raise LeaseLostError(step=wait.key)
    return Waited(
        left=row["left"],
        stop=row["cancel_requested"],
        outcome=row["outcome"] or outcomes.WAITING,
        output=row["output"],
        codec=row["codec"],
        **more,
    )


def _parameters(run: int, fence: uuid.UUID, wait: Wait) -> dict[str, Any]:
    return {**wait.__dict__, "run": run, "fence": fence, "closed": closed(fence)}
