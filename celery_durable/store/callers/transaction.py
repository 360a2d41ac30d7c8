"""What is asked of a caller's transaction, whoever made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import TransactionUsageError

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

_IN_TRANSACTION = (2, 3)  # libpq's INTRANS and INERROR


class CallersTransaction(ABC):
    """An open transaction of the caller's."""

    @property
    @abstractmethod
    def database(self) -> object:
        """What leads to one database and can be referred to weakly: an engine, a connection."""

    @property
    @abstractmethod
    def notes(self) -> MutableMapping[Any, Any] | None:
        """Where to keep what belongs to the session or connection; None where `when_over` calls nobody."""

    @abstractmethod
    def require_open(self) -> None:
        """Raise `TransactionUsageError` when there is nothing that could be committed or rolled back."""

    @abstractmethod
    def row(self, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Execute a statement in the transaction and return its only row."""

    @abstractmethod
    def when_over(self, call: Callable[[], None]) -> None:
        """Have `call` called soon after the transaction has ended, also when it was rolled back."""


def refuse_autocommit(driver_connection: Any) -> None:
    """Raise for a driver's connection that commits each statement by itself."""
    if getattr(driver_connection, "autocommit", None) is not True or _in_block(driver_connection):
        return
    message = (
        "The connection given as transaction= is in autocommit mode: the run would be stored at once, and "
        "could not be rolled back. Open a transaction first (psycopg: `with connection.transaction():`), or "
        "leave transaction= out"
    )
    raise TransactionUsageError(message)


def _in_block(driver_connection: Any) -> bool:
    """Whether a psycopg connection is inside a transaction that a statement or a block has opened."""
    status = getattr(getattr(driver_connection, "info", None), "transaction_status", None)
    return status is not None and int(status) in _IN_TRANSACTION
