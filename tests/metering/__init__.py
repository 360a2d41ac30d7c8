"""What an operation costs: network round trips, counted on the wire, and commits, counted by Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from harness.proxy import proxied

from celery_durable.config import Settings
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.proxy import Proxy

_COMMITS = "select xact_commit from pg_stat_database where datname = %s"
# Postgres 15 or newer: a session reports its commits now, if it has looked at a table since it did so before.
_REPORT = "select pg_stat_force_next_flush() from durable.migration"


class Meter:
    """Counts what goes through one proxied database, which nobody else uses.

    Arguments:
        proxy: between the store and the server.
        store: a store that connects through the proxy.
        observer: a connection to another database of the same server.
    """

    def __init__(self, proxy: Proxy, store: Store, observer: psycopg.Connection[Any]) -> None:
        self.proxy, self.store, self._observer = proxy, store, observer
        self._database = store.url.rpartition("/")[2]

    def cost(self, work: Callable[[], object]) -> tuple[int, int]:
        """Return round trips and commits of `work`, whose statements this process has prepared already."""
        commits, trips = self._commits(), self._trips()
        work()
        trips = self._trips() - trips
        return trips, self._commits() - commits - 1  # the report is one itself

    def _trips(self) -> int:
        return self.proxy.kinds[b"S"] + self.proxy.kinds[b"Q"]

    def _commits(self) -> int:
        self.store.connections.once(lambda connection: connection.execute(_REPORT))
        row = self._observer.execute(_COMMITS, [self._database]).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def metered(database_url: str, server_url: str) -> Iterator[Meter]:
    """Yield a meter on a database that is migrated first."""
    with proxied(database_url) as proxy, psycopg.connect(server_url, autocommit=True) as observer:
        store = Store(proxy.url, Settings())
        store.migrate()
        try:
            yield Meter(proxy, store, observer)
        finally:
            store.connections.close()
