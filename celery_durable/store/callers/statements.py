"""A run stored by way of a caller's transaction, and what became of it."""

from __future__ import annotations

import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.exceptions import TransactionUsageError
from celery_durable.store import queries
from celery_durable.store.bulk import slot_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.store.callers.transaction import CallersTransaction
    from celery_durable.store.connections import Connection, Connections
    from celery_durable.store.writes import NewRun

# Who stored the run publishes it within this time after storing it; later the keeper may be faster.
_GRACE = timedelta(seconds=1)
_AT_ONCE = timedelta(0)


class Within(NamedTuple):
    """What became of a run: the id of the transaction, and the state unless the run was there before."""

    transaction: str
    state: str | None


class CallersStore:
    """What is written in transactions of the caller's, and read of it when they are over.

    Arguments:
        connections: the store's own connections.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._schema = schema
        self._sql = queries.load("callers", schema)
        self._assign_slot = queries.load("runs", schema)["assign_slot"]
        self._check = check
        self._known: weakref.WeakKeyDictionary[object, bool] = weakref.WeakKeyDictionary()

    def is_ours(self, transaction: CallersTransaction) -> bool:
        """Say whether a transaction is one of the store's database; asked once per engine or connection."""
        database = transaction.database
        if database in self._known:
            return self._known[database]
        here = self._here()  # first: the tables may be made on the way
        there = transaction.row(self._sql["place"], {"schema": self._schema})
        self._known[database] = there["place"] == here["place"]
        return self._known[database]

    def enqueue_within(self, transaction: CallersTransaction, run: NewRun) -> Within:
        """Store a run in the caller's transaction.

        Raises `TransactionUsageError` when the transaction is one of another database than the store's.
        """
        if not self.is_ours(transaction):
            raise TransactionUsageError(self._elsewhere(transaction))
        grace = _AT_ONCE if transaction.notes is None else _GRACE
        parameters = {name: value for name, value in vars(run).items() if name not in ("publish", "chains")}
        within = Within(**transaction.row(self._sql["enqueue_within"], {**parameters, "grace": grace}))
        if run.slot is not None:
            transaction.row(self._assign_slot, slot_of(run))
        return within

    def committed(self, ids: Sequence[str]) -> set[str]:
        """Return those of some runs that are to be published: they are stored, and no broker has them."""

        def work(connection: Connection) -> list[dict[str, Any]]:
            return connection.execute(self._sql["committed"], {"ids": list(ids)}).fetchall()

        return {row["id"] for row in self._connections.patiently(work, budget=0)}

    def published(self, ids: Sequence[str]) -> None:
        """Note that the broker has taken these runs' messages."""
        parameters = {"ids": list(ids), "check": self._check}
        self._connections.patiently(
            lambda connection: connection.execute(self._sql["published"], parameters), budget=0
        )

    def _here(self) -> dict[str, Any]:
        def work(connection: Connection) -> dict[str, Any]:
            return connection.execute(self._sql["place"], {"schema": self._schema}).fetchone() or {}

        return self._connections.patiently(work, budget=5)

    def _elsewhere(self, transaction: CallersTransaction) -> str:
        there, here = transaction.row(self._sql["place"], {"schema": self._schema}), self._here()
        what = (
            f"is of another database ({there['name']!r}) than the one that holds the runs ({here['name']!r})"
            if there["name"] != here["name"]
            else f"is of a database {there['name']!r} on another server than the one that holds the runs"
        )
        return (
            f"The transaction given as transaction= {what}. A run can only be stored in a transaction of its "
            f"own database: point result_backend at that one and run `celery -A <app> durable init`, or call "
            f"apply_async without transaction= after the commit"
        )
