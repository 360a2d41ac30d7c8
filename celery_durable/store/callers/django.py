"""Transactions of Django: the `atomic` block that a connection of Django's is in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import TransactionUsageError
from celery_durable.store.callers.transaction import CallersTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping


class DjangoTransaction(CallersTransaction):
    """The outermost `atomic` block of a connection.

    Arguments:
        connection: a `django.db.backends.base.base.BaseDatabaseWrapper`.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def database(self) -> object:
        """The connection."""
        return self._connection

    @property
    def notes(self) -> MutableMapping[Any, Any]:
        """A dictionary on the connection, which a thread has for itself."""
        notes: dict[Any, Any] = vars(self._connection).setdefault("celery_durable", {})
        return notes

    def require_open(self) -> None:
        """Raise outside of `atomic`, and for a database that is not Postgres."""
        vendor = self._connection.vendor
        if vendor != "postgresql":
            message = (
                f"The database {self._connection.alias!r} is {vendor}; transaction= needs the Postgres that "
                f"holds the runs"
            )
            raise TransactionUsageError(message)
        if not self._connection.in_atomic_block:
            message = (
                f"transaction= is the connection {self._connection.alias!r} outside of any transaction. Wrap "
                f"the call in `with transaction.atomic():`, or leave transaction= out"
            )
            raise TransactionUsageError(message)

    def row(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a statement on a cursor of Django's."""
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return {
                column[0]: value for column, value in zip(cursor.description, cursor.fetchone(), strict=True)
            }

    def when_over(self, call: Callable[[], None]) -> None:
        """Have Django call `call` after the commit, unless the savepoint around here is rolled back."""
        from django.db import transaction

        transaction.on_commit(call, using=self._connection.alias, robust=True)


def recognised(given: Any) -> CallersTransaction | None:
    """Return what stands for the transaction of a connection of Django's, None for anything else."""
    base = sys.modules.get("django.db.backends.base.base")
    if base is None:
        return None
    proxy = sys.modules["django.utils.connection"].ConnectionProxy
    if isinstance(given, proxy):
        from django.db import connections

        given = connections[given.alias]
    return DjangoTransaction(given) if isinstance(given, base.BaseDatabaseWrapper) else None
