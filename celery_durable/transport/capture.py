"""Where broker and store are one database: messages on their way to a common commit, and back from one."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_durable.store.messages import NewMessage

CLAIM = "durable-claim"
"""Where `delivery_info` carries a message's claim: its database, consumer, message and number."""

_capturing: ContextVar[tuple[str, list[NewMessage]] | None] = ContextVar(
    "celery_durable_capture", default=None
)


@contextmanager
def capturing(database: str) -> Iterator[list[NewMessage]]:
    """Catch what is published to a queue of a database, instead of storing it.

    Arguments:
        database: its identity; what goes elsewhere, or to an exchange, is published as ever.
    """
    found: list[NewMessage] = []
    token = _capturing.set((database, found))
    try:
        yield found
    finally:
        _capturing.reset(token)


def caught(database: str, new: NewMessage) -> bool:
    """Take a message, if somebody waits for it."""
    waiting = _capturing.get()
    if waiting is None or waiting[0] != database:
        return False
    waiting[1].append(new)
    return True


def claim_of(properties: Any, database: str) -> Sequence[int] | None:
    """Return a delivered message's claim, None if it is not of this database."""
    claim = ((properties or {}).get("delivery_info") or {}).get(CLAIM)
    if not claim or claim[0] != database:
        return None
    return [int(part) for part in claim[1:]]


def goes_to(producer: Any, database: str) -> bool:
    """Whether a producer publishes to a database."""
    return getattr(producer.connection.transport, "identity", None) == database
