"""SQLAlchemy's connections and sessions for transaction steps; loaded when the first step asks for one."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from psycopg import Error
from psycopg.pq import TransactionStatus

from celery_durable.exceptions import ConfigurationError
from celery_durable.store.lending import LentConnection, refuse

try:
    import sqlalchemy
    from sqlalchemy import orm
except ImportError as error:
    _MISSING = (
        "A transaction step wants a handle of SQLAlchemy, which is not installed: "
        "pip install 'sqlalchemy>=2' (or let it take a psycopg.Connection)"
    )
    raise ConfigurationError(_MISSING) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store.lending import LentConnections

T = TypeVar("T")


class _Lent:
    """A handle whose transaction is not its holder's to end."""

    def commit(self) -> None:
        refuse("commit()")

    def rollback(self) -> None:
        refuse("rollback()")

    def close(self) -> None:
        refuse("close()")


class _Session(_Lent, orm.Session):
    reset = invalidate = _Lent.close

    def __exit__(self, *_: object) -> None:
        orm.Session.close(self)


class _Connection(_Lent, sqlalchemy.Connection):
    def returned(self) -> None:
        """Give it back to its pool."""
        sqlalchemy.Connection.close(self)


class SqlAlchemyLender:
    """Lends `sqlalchemy.Connection`, or an `orm.Session` on one.

    Arguments:
        connections: makes the connections below; SQLAlchemy's pool keeps them.
        session: lend sessions.
    """

    def __init__(self, connections: LentConnections, *, session: bool) -> None:
        self._connections = connections
        self._session = session
        self._engine: sqlalchemy.Engine | None = None
        self._pid = 0
        self._inherited: list[object] = []

    @property
    def engine(self) -> sqlalchemy.Engine:
        """The engine of this process."""
        if self._engine is None or self._pid != os.getpid():
            self._inherited.append(self._engine)  # kept: closing would say goodbye on the parent's sockets
            creator: Any = self._connections.connect
            self._engine = sqlalchemy.create_engine(
                "postgresql+psycopg://",
                creator=creator,
                pool_size=self._connections.size,
                max_overflow=0,
                pool_timeout=self._connections.outage_budget,
                pool_reset_on_return=None,  # nothing is returned in the middle of a transaction
            )
            self._pid = os.getpid()
        return self._engine

    def once(self, work: Callable[[LentConnection, Any], T]) -> T:
        """Do `work` with a connection and SQLAlchemy's handle around it."""
        connection = self._connected()
        lent = cast("LentConnection", connection.connection.driver_connection)
        lent.wrapped = True
        try:
            if not self._session:
                return work(lent, connection)
            # The session takes part in the transaction at hand; its commit() would be the connection's.
            with _Session(connection, join_transaction_mode="control_fully") as session:
                return work(lent, session)
        finally:
            if lent.pgconn.transaction_status != TransactionStatus.IDLE:
                connection.invalidate()
            connection.returned()

    def _connected(self) -> _Connection:
        self._connections.begin()
        try:
            return _Connection(self.engine)
        except sqlalchemy.exc.DBAPIError as error:
            if isinstance(error.orig, Error):
                raise error.orig from error
            raise

    def written(self, handle: Any) -> None:
        """Flush a session."""
        if isinstance(handle, orm.Session):
            handle.flush()

    def drain(self) -> None:
        """Forget open connections."""
        if self._engine is not None and self._pid == os.getpid():
            with suppress(sqlalchemy.exc.SQLAlchemyError):
                self._engine.dispose()
