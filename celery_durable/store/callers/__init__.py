"""Transactions that belong to the caller: SQLAlchemy's, Django's, psycopg's, or any DBAPI connection's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store.callers import dbapi, django, sqlalchemy
from celery_durable.store.callers.statements import CallersStore

if TYPE_CHECKING:
    from celery_durable.store.callers.transaction import CallersTransaction

__all__ = ["CallersStore", "recognised"]


def recognised(given: Any) -> CallersTransaction:
    """Return what stands for the open transaction of a session or connection.

    Raises `TransactionUsageError` for anything else, and for a connection without an open transaction.
    """
    found = sqlalchemy.recognised(given) or django.recognised(given) or dbapi.recognised(given)
    found.require_open()
    return found
