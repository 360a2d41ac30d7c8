"""The broker's queues in Postgres: declare, publish, count and purge, in one round trip each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection, Connections

T = TypeVar("T")

DEAD = ".dead"
"""What the name of a queue's dead-letter queue ends with."""


@dataclass(frozen=True)
class NewMessage:
    """A message on its way to a queue.

    Attributes:
        queue: where it goes.
        payload: what is delivered.
        priority: 9 is delivered first, 0 last.
        expires: how long it may wait, None for ever.
    """

    queue: str
    payload: bytes
    priority: int = 0
    expires: timedelta | None = None


@dataclass(frozen=True)
class Binding:
    """How an exchange's messages reach a queue.

    Attributes:
        exchange: its name.
        kind: direct, topic or fanout.
        routing_key: what a message must carry, or its pattern in AMQP's words.
        queue: where they go.
        pattern: of a topic exchange, the same as a regular expression.
    """

    exchange: str
    kind: str
    routing_key: str
    queue: str
    pattern: str | None = None


@dataclass(frozen=True)
class QueueState:
    """What a queue holds.

    Attributes:
        messages: how many wait.
        consumers: how many connections consume it.
    """

    messages: int
    consumers: int


@dataclass(frozen=True)
class QueueView:
    """A queue, for people.

    Attributes:
        name: its name.
        ready: how many messages wait.
        held: how many are with a consumer.
        consumers: how many connections consume it.
        waiting: seconds that the oldest of those that wait has waited, None if there is none.
        expires: how long it outlives its last consumer, None for ever.
    """

    name: str
    ready: int
    held: int
    consumers: int
    waiting: float | None
    expires: timedelta | None


class MessageStore:
    """The statements of everybody who publishes or looks after queues.

    Arguments:
        connections: where to write.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self.connections = connections
        self._sql = queries.load("messages", schema)

    def ping(self) -> None:
        """Raise what is wrong with the server or its schema."""
        self._run("ping", {})

    def declare(
        self, queue: str, *, auto_delete: bool, expires: timedelta | None, ttl: timedelta | None
    ) -> None:
        """Create a queue, or change what becomes of it and its messages."""
        options = {"queue": queue, "auto_delete": auto_delete, "expires": expires, "ttl": ttl}
        self._run("declare_queue", options)

    def delete(self, queue: str) -> None:
        """Remove a queue, its bindings and the messages that wait."""
        self._run("delete_queue", {"queue": queue})

    def bind(self, binding: Binding) -> None:
        """Let an exchange's messages reach a queue."""
        self._run("bind", binding.__dict__)

    def unbind(self, exchange: str, queue: str, routing_key: str) -> None:
        """Undo `bind`."""
        self._run("unbind", {"exchange": exchange, "queue": queue, "routing_key": routing_key})

    def unbind_all(self, exchange: str) -> None:
        """Remove every binding of an exchange."""
        self._run("unbind_all", {"exchange": exchange})

    def bindings(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """Return routing key, pattern and queue of each binding of an exchange."""
        rows = self._rows("bindings", {"exchange": exchange})
        return [(row["routing_key"], row["pattern"], row["queue"]) for row in rows]

    def state(self, queue: str) -> QueueState | None:
        """Return what a queue holds, None when there is no such queue."""
        rows = self._rows("state_of_queue", {"queue": queue})
        return QueueState(**rows[0]) if rows else None

    def queues(self) -> list[QueueView]:
        """Return every queue with what it holds."""
        return [QueueView(**row) for row in self._rows("queues", {})]

    def redrive(self, queue: str) -> int:
        """Put the dead letters of a queue back into it; return how many."""
        return int(self._rows("redrive", {"queue": queue})[0]["messages"])

    def has_messages(self, queue: str) -> bool:
        """Return whether a message waits in a queue."""
        return bool(self._rows("has_messages", {"queue": queue})[0]["found"])

    def purge(self, queue: str) -> int:
        """Remove the messages that wait in a queue; return how many."""
        return self._run("purge", {"queue": queue})

    def send(self, message: NewMessage) -> bool:
        """Store a message; return False when there is no such queue."""
        return self._tell(self._rows("send", message.__dict__))

    def send_many(self, messages: Sequence[NewMessage]) -> set[str]:
        """Store messages in one transaction; return the queues among theirs that exist."""
        parameters = {
            "queues": [message.queue for message in messages],
            "urgencies": [message.priority for message in messages],
            "payloads": [message.payload for message in messages],
            "lives": [message.expires for message in messages],
        }
        rows = self._rows("send_many", parameters)
        self._tell(rows)
        return {row["queue"] for row in rows}

    def route(self, exchange: str, routing_key: str, message: NewMessage) -> bool:
        """Store a message in every queue that an exchange leads to; return whether there was one."""
        parameters = {**message.__dict__, "exchange": exchange, "routing_key": routing_key}
        return self._tell(self._rows("route", parameters))

    def _tell(self, rows: list[dict[str, Any]]) -> bool:
        self.wake(rows)
        return bool(rows)

    def wake(self, rows: Iterable[dict[str, Any]]) -> None:
        """Tell each row's `sleeper`, if it has one, that its `queue` has something, which is committed."""
        found = [row for row in rows if row["sleeper"] is not None]
        if found:
            sleepers = [row["sleeper"] for row in found]
            self._run("wake", {"sleepers": sleepers, "queues": [row["queue"] for row in found]})

    def _run(self, name: str, parameters: dict[str, Any]) -> int:
        return self._once(lambda connection: connection.execute(self._sql[name], parameters).rowcount)

    def _rows(self, name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        return self._once(lambda connection: connection.execute(self._sql[name], parameters).fetchall())

    def _once(self, work: Callable[[Connection], T]) -> T:
        return self.connections.once(work)
