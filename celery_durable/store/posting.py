"""Runs and their messages in one commit, where broker and store are one database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.bulk import Insertion
from celery_durable.store.messages import MessageStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection, Connections
    from celery_durable.store.messages import NewMessage
    from celery_durable.store.writes import NewRun

_BUDGET = 15.0


@dataclass(frozen=True)
class Post:
    """A run's message, as the broker keeps it."""

    run: str
    message: NewMessage


class PostingStore:
    """The writes of senders.

    Arguments:
        connections: where to write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._runs_sql = {**queries.load("chains", schema), **queries.load("runs", schema)}
        self._sql = queries.load("posting", schema)
        self._check = check
        self._messages = MessageStore(connections, schema=schema)

    def enqueue(self, runs: Sequence[NewRun], posts: Sequence[Post]) -> tuple[list[str | None], set[str]]:
        """Store runs and messages in one round trip and one transaction.

        Returns each run's state, None for known ids, and the queues that exist among the messages'.
        """
        parameters = {
            "runs": [post.run for post in posts],
            "queues": [post.message.queue for post in posts],
            "urgencies": [post.message.priority for post in posts],
            "payloads": [post.message.payload for post in posts],
        }

        def work(connection: Connection) -> tuple[list[str | None], list[dict[str, Any]]]:
            with connection.pipeline():
                inserted = Insertion(connection, self._runs_sql, runs, self._check)
                posted = connection.execute(self._sql["post"], parameters)
            return inserted.states(), posted.fetchall()

        states, rows = self._connections.patiently(work, budget=_BUDGET)
        self._messages.wake(rows)
        return states, {row["queue"] for row in rows}
