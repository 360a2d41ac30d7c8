"""The broker message of the attempt at work here, where broker and store are one database.

It is deleted by the write that ends the attempt, so that no crash in between brings it back.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.url import strip_prefix

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from celery_durable.store.connections import Connection

_message: ContextVar[tuple[int, int, int] | None] = ContextVar("celery_durable_message", default=None)


def database_of(url: str, schema: str) -> str:
    """Return what tells one database and schema from another, and nothing else about it."""
    return hashlib.sha256(f"{strip_prefix(url)} {schema}".encode()).hexdigest()[:16]


@contextmanager
def holding(claim: Sequence[int] | None) -> Iterator[None]:
    """Let the attempt's last write here delete its message.

    Arguments:
        claim: consumer, message and number; None where there is nothing to delete.
    """
    token = _message.set(None if claim is None else (claim[0], claim[1], claim[2]))
    try:
        yield
    finally:
        _message.reset(token)


def something() -> bool:
    """Whether there is a message to delete."""
    return _message.get() is not None


def put_away(connection: Connection, schema: str, run: int, fence: uuid.UUID) -> None:
    """Delete the message if the statement in front of this one, in its transaction, has ended the attempt."""
    _execute(connection, schema, "put_away", {"run": run, "fence": fence})


def put_away_unclaimed(connection: Connection, schema: str, run_id: str) -> None:
    """Delete the message if the statement in front of this one has ended its run, or lets it wait."""
    _execute(connection, schema, "put_away_unclaimed", {"run_id": run_id})


def _execute(connection: Connection, schema: str, name: str, parameters: dict[str, Any]) -> None:
    held = _message.get()
    if held is not None:
        consumer, message, number = held
        given = {"consumer": consumer, "id": message, "number": number, **parameters}
        connection.execute(queries.load("posting", schema)[name], given)
