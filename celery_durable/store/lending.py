"""Connections that are lent to the body of a transaction step: psycopg's own, or SQLAlchemy's around one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from psycopg import Cursor
from psycopg.rows import tuple_row

from celery_durable.exceptions import StepUsageError
from celery_durable.store.connections import Connection, Connections

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_OF_PSYCOPG = 5  # how often a statement is executed before it is prepared, unless preparing is switched off


class LentConnection(Connection):
    """A connection whose transaction is not its holder's to end, as long as it is lent.

    Attributes:
        lent: whether a body has it.
        wrapped: whether a library stands between it and the body, which rolls back on its own after an error.
        given_up: whether that library wanted to roll back: what was written is not to be committed.
    """

    lent = False
    wrapped = False
    given_up = False

    def lend(self) -> None:
        """Give it away."""
        self.given_up, self.lent = False, True

    def take_back(self) -> None:
        """Take it back as it was: its holder may have chosen other rows or cursors."""
        self.lent = False
        rows: Any = tuple_row
        self.row_factory, self.cursor_factory = rows, Cursor

    def commit(self) -> None:
        """Commit; refused while lent."""
        if self.lent:
            refuse("commit()")
        super().commit()

    def rollback(self) -> None:
        """Roll back; refused while lent, or put off to the end of the body."""
        if not self.lent:
            super().rollback()
        elif self.wrapped:
            self.given_up = True
        else:
            refuse("rollback()")

    def close(self) -> None:
        """Close; refused while lent."""
        if self.lent and not self.broken:
            refuse("close()")
        super().close()


def refuse(what: str) -> NoReturn:
    """Raise what a body hears that wants to end the transaction it was lent."""
    message = (
        f"{what} inside a transaction step: its writes are committed together with its checkpoint, when its "
        f"function returns. Return to commit, raise to roll back; for a part of it, use a savepoint: "
        f"`with connection.transaction():` or `session.begin_nested()`"
    )
    raise StepUsageError(message)


class LentConnections(Connections):
    """Connections of one process that are lent to the bodies of steps, and used for nothing else.

    What a body leaves behind in its session (`SET`, temporary tables) does not reach the store's own writes.
    """

    kind = LentConnection
    hinted = ()  # what is done with them is the user's

    def _options(self) -> dict[str, Any]:
        threshold = _OF_PSYCOPG if self.prepare else None
        return {**super()._options(), "row_factory": tuple_row, "prepare_threshold": threshold}


class Lender(Protocol):
    """What lends a connection: each kind of handle has its own."""

    def once(self, work: Callable[[LentConnection, Any], T]) -> T:
        """Do `work` with a connection and the handle that a body gets, without a second try."""
        ...

    def written(self, handle: Any) -> None:
        """Send what the handle still keeps to itself, at the end of a body."""
        ...

    def drain(self) -> None:
        """Forget open connections: the server went away."""
        ...


class PsycopgLender:
    """Lends psycopg's connections as they are."""

    def __init__(self, connections: LentConnections) -> None:
        self._connections = connections

    def once(self, work: Callable[[LentConnection, Any], T]) -> T:
        """Do `work` with a connection, which is the handle too."""

        def lent(connection: Connection) -> T:
            assert isinstance(connection, LentConnection)  # noqa: S101  (tells the type checker)
            return work(connection, connection)

        return self._connections.once(lent)

    def written(self, handle: Any) -> None:
        """Nothing: a connection sends each statement at once."""

    def drain(self) -> None:
        """Forget open connections."""
        self._connections.drain()
