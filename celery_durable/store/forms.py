"""What a transaction step asks of the store, as plain values: they need no database driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import uuid

Handle = Literal["psycopg", "connection", "session"]
Isolation = Literal["read committed", "repeatable read", "serializable"]


@dataclass(frozen=True)
class TransactionForm:
    """How a step's transaction is made.

    Attributes:
        handle: what the body gets.
        isolation: the isolation level.
        limit: seconds that the step may take; the server ends a transaction that lies idle for so long.
    """

    handle: Handle = "psycopg"
    isolation: Isolation = "read committed"
    limit: float | None = None


@dataclass(frozen=True)
class Place:
    """Whose step it is: the run by key and by name, its attempt, and the step's key."""

    run: int
    run_id: str
    attempt: int
    fence: uuid.UUID
    key: str


@dataclass(frozen=True)
class Kept:
    """What is stored of a transaction step.

    Attributes:
        before: whether it was committed before, so that the body's value is not of this try.
        stop: whether the run is asked to stop.
    """

    output: bytes | None
    codec: str | None
    before: bool = False
    stop: bool = False
