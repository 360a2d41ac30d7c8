"""Transactions of psycopg, and of any driver that takes parameters as psycopg does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row

from celery_durable.exceptions import TransactionUsageError
from celery_durable.store.callers.transaction import CallersTransaction, refuse_autocommit

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = (
    "a SQLAlchemy Session or Connection, Django's django.db.connection, a psycopg connection, or another "
    "DBAPI connection whose paramstyle is 'pyformat'"
)


class DbapiTransaction(CallersTransaction):
    """The transaction of a driver's connection. It tells nobody when it ends: the keeper publishes.

    Arguments:
        connection: the connection.
    """

    notes = None

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def database(self) -> object:
        """The connection."""
        return self._connection

    def require_open(self) -> None:
        """Raise for autocommit outside of a block."""
        refuse_autocommit(self._connection)

    def row(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a statement on a cursor of its own."""
        with self._cursor() as cursor:
            cursor.execute(sql, parameters)
            found, columns = cursor.fetchone(), cursor.description
        if isinstance(found, Mapping):
            return dict(found)
        return {column[0]: value for column, value in zip(columns, found, strict=True)}

    def _cursor(self) -> Any:
        if isinstance(self._connection, psycopg.Connection):
            return self._connection.cursor(row_factory=tuple_row)  # whatever the connection's rows look like
        return self._connection.cursor()

    def when_over(self, call: Callable[[], None]) -> None:
        """Nothing: a driver's connection tells nobody."""


def recognised(given: Any) -> CallersTransaction:
    """Return what stands for the transaction of a driver's connection; raise `TransactionUsageError`."""
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    if isinstance(given, psycopg.AsyncConnection):
        message = (
            "transaction= takes no asynchronous connection: apply_async is a plain call. Use a "
            "psycopg.Connection, or SQLAlchemy's AsyncSession.run_sync"
        )
        raise TransactionUsageError(message)
    if not (callable(getattr(given, "cursor", None)) and callable(getattr(given, "commit", None))):
        message = f"transaction= is {kind}, which is no connection: give it {_KINDS}"
        raise TransactionUsageError(message)
    if not isinstance(given, psycopg.Connection) and _paramstyle(given) != "pyformat":
        message = f"transaction= is {kind}, whose driver takes parameters in another way: give it {_KINDS}"
        raise TransactionUsageError(message)
    return DbapiTransaction(given)


def _paramstyle(connection: Any) -> str | None:
    for cls in type(connection).__mro__:
        driver = sys.modules.get(cls.__module__.partition(".")[0])
        if style := getattr(driver, "paramstyle", None):
            return str(style)
    return None
