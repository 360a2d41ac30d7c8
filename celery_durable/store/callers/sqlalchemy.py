"""Transactions of SQLAlchemy: of a `Session`, which tells when they end, and of a bare `Connection`."""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import TransactionUsageError
from celery_durable.store.callers.transaction import CallersTransaction, refuse_autocommit

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_CALLS = "celery_durable calls"
_PARAMETER = re.compile(r"%\((\w+)\)s")


class SessionTransaction(CallersTransaction):
    """The outermost transaction of a `Session`.

    Arguments:
        session: an `sqlalchemy.orm.Session`.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    @property
    def database(self) -> object:
        """The engine."""
        engine: object = self._session.connection().engine
        return engine

    @property
    def notes(self) -> MutableMapping[Any, Any]:
        """The session's own place for notes."""
        info: MutableMapping[Any, Any] = self._session.info
        return info

    def require_open(self) -> None:
        """Raise for an engine in autocommit mode; a session begins its transaction by itself."""
        refuse_autocommit(self._session.connection().connection.dbapi_connection)

    def row(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a statement in the session's transaction; nothing is flushed for it."""
        return _row(self._session.connection(), sql, parameters)

    def when_over(self, call: Callable[[], None]) -> None:
        """Have the session call `call` when its outermost transaction is over."""
        from sqlalchemy import event

        self._session.info.setdefault(_CALLS, []).append(call)
        if not event.contains(self._session, "after_transaction_end", _session_is_over):
            event.listen(self._session, "after_transaction_end", _session_is_over)


class ConnectionTransaction(CallersTransaction):
    """The transaction of a bare `Connection`: it is known to be over when the connection is given back.

    Arguments:
        connection: an `sqlalchemy.engine.Connection`.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def database(self) -> object:
        """The engine."""
        engine: object = self._connection.engine
        return engine

    @property
    def notes(self) -> MutableMapping[Any, Any]:
        """The pool's own place for notes on a connection."""
        info: MutableMapping[Any, Any] = self._connection.info
        return info

    def require_open(self) -> None:
        """Raise in autocommit mode; a connection begins its transaction by itself."""
        refuse_autocommit(self._connection.connection.dbapi_connection)

    def row(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a statement in the connection's transaction."""
        return _row(self._connection, sql, parameters)

    def when_over(self, call: Callable[[], None]) -> None:
        """Have the pool call `call` when it has the connection back; SQLAlchemy tells of no commit before."""
        from sqlalchemy import event

        self._connection.info.setdefault(_CALLS, []).append(call)
        pool = self._connection.engine.pool
        if not event.contains(pool, "checkin", _connection_is_back):
            event.listen(pool, "checkin", _connection_is_back)


def recognised(given: Any) -> CallersTransaction | None:
    """Return what stands for a transaction of SQLAlchemy's, None for anything else.

    Raises `TransactionUsageError` for an asynchronous session or connection.
    """
    orm, engine = sys.modules.get("sqlalchemy.orm"), sys.modules.get("sqlalchemy.engine")
    if orm is not None and isinstance(given, orm.scoped_session):
        given = given()
    if orm is not None and isinstance(given, orm.Session):
        return SessionTransaction(given)
    if engine is not None and isinstance(given, engine.Connection):
        return ConnectionTransaction(given)
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio is not None and isinstance(given, (asyncio.AsyncSession, asyncio.AsyncConnection)):
        message = (
            "transaction= takes no asynchronous session: apply_async is a plain call. Write `await "
            "session.run_sync(lambda plain: task.apply_async(..., transaction=plain))`"
        )
        raise TransactionUsageError(message)
    return None


def _row(connection: Any, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return dict(connection.execute(_statement(sql), parameters).mappings().one())


@cache
def _statement(sql: str) -> Any:
    """Return a statement with its parameters as SQLAlchemy writes them for any driver."""
    from sqlalchemy import text

    return text(_PARAMETER.sub(r":\1 ", sql))  # the blank: a cast would be taken for part of the name


def _session_is_over(session: Any, transaction: Any) -> None:
    if transaction.parent is None:
        for call in session.info.pop(_CALLS, ()):
            call()


def _connection_is_back(_: Any, record: Any) -> None:
    for call in record.info.pop(_CALLS, ()):
        call()
