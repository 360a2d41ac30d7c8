"""Runs on their way into the store, and what is asked about them before anybody claims them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.bulk import Insertion
from celery_durable.store.writes import NewRun, PlainMessage, Stored

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection, Connections

ENQUEUE_BUDGET = 15.0
"""Seconds that a caller waits for Postgres to come back."""


class NewRuns:
    """New runs: stored before their messages are published, and repeated safely after a lost answer.

    Arguments:
        connections: where to write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._sql = {**queries.load("chains", schema), **queries.load("runs", schema)}
        self._check = check

    def enqueue(self, run: NewRun) -> str | None:
        """Store a run; return its state, or None when a run with this id is there already."""
        return self.enqueue_bulk([run])[0]

    def enqueue_bulk(self, runs: Sequence[NewRun]) -> list[str | None]:
        """Store runs in one round trip and one transaction; return each one's state, None for known ids."""

        def work(connection: Connection) -> list[str | None]:
            if len(runs) == 1 and not runs[0].chains and runs[0].slot is None:
                return self._insert(connection, runs).states()
            with connection.pipeline():
                inserted = self._insert(connection, runs)
            return inserted.states()

        return self._connections.patiently(work, budget=ENQUEUE_BUDGET)

    def unclaimed(self, ids: Sequence[str]) -> set[str]:
        """Return those that are pending and wait for their first claim: their messages may not be sent."""

        def work(connection: Connection) -> set[str]:
            return {row["id"] for row in connection.execute(self._sql["unclaimed"], {"ids": list(ids)})}

        return self._connections.patiently(work, budget=ENQUEUE_BUDGET)

    def unpublish(self, ids: Sequence[str], delay: timedelta) -> None:
        """Hand runs whose message the broker did not take to the keeper."""
        parameters = {"ids": list(ids), "delay": delay}
        self._one("unpublish", parameters, budget=ENQUEUE_BUDGET, fetch=False)

    def add(self, connection: Connection, new: Sequence[NewRun | PlainMessage]) -> list[str | None]:
        """Store runs and messages in the transaction that is open; return their states, for `to_send()`."""
        with connection.pipeline():
            added = self._insert(connection, new)
        return added.states()

    def to_send(self, new: Sequence[NewRun | PlainMessage], states: list[str | None]) -> list[str | None]:
        """Return what is to be sent; a row that was there already may be this very write, answered late."""
        known = [
            one.id for one, state in zip(new, states, strict=True) if not state and isinstance(one, NewRun)
        ]
        unclaimed = self.unclaimed(known) if known else set()
        return ["pending" if one.id in unclaimed else state for one, state in zip(new, states, strict=True)]

    def _insert(
        self,
        connection: Connection,
        new: Sequence[NewRun | PlainMessage],
        holder: int | None = None,
        fence: uuid.UUID | None = None,
    ) -> Insertion:
        return Insertion(connection, self._sql, new, self._check, holder, fence)

    def stored(self, run: int) -> Stored | None:
        """Return a run's message, to be published again."""
        row = self._one("stored", {"run": run})
        return row and Stored(**row)

    def withdraw(self, ids: Sequence[str]) -> None:
        """Forget runs whose messages could not be sent."""
        self._one("withdraw", {"ids": list(ids)}, fetch=False)

    def outbox_done(self, keys: Sequence[int]) -> None:
        """Forget published messages to tasks without a run."""
        self._one("outbox_done", {"keys": list(keys)}, fetch=False)

    def _one(
        self, name: str, parameters: dict[str, Any], *, budget: float | None = None, fetch: bool = True
    ) -> Any:
        def work(connection: Connection) -> Any:
            cursor = connection.execute(self._sql[name], parameters)
            return cursor.fetchone() if fetch else None

        return self._connections.patiently(work, budget=budget)
