"""What an operation costs, counted on the wire."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.proxy import proxied

from celery_durable.config import Settings
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.proxy import Proxy

_TRANSACTION = re.compile(
    r"\s*(begin|start|commit|end|rollback|savepoint|prepare transaction)\b", re.IGNORECASE
)


class Meter:
    """Counts what goes through one proxied database, which nobody else uses.

    Arguments:
        proxy: between the store and the server.
        store: a store that connects through the proxy.
    """

    def __init__(self, proxy: Proxy, store: Store) -> None:
        self.proxy, self.store = proxy, store

    def cost(self, work: Callable[[], object]) -> int:
        """Return the round trips of `work`, which are its commits too.

        Each message that ends a round trip ends a transaction as well, as long as nobody begins one by a
        statement; so that is checked. The statements should have been prepared before.
        """
        trips, statements = self.trips, len(self.proxy.statements)
        work()
        explicit = [sent for sent in self.proxy.statements[statements:] if _TRANSACTION.match(sent)]
        assert explicit == [], "a transaction of several round trips"
        return self.trips - trips

    @property
    def trips(self) -> int:
        """Round trips so far: clients sent a Sync or a Query, and waited."""
        return self.proxy.kinds[b"S"] + self.proxy.kinds[b"Q"]


@contextmanager
def metered(database_url: str) -> Iterator[Meter]:
    """Yield a meter on a database that is migrated first."""
    with proxied(database_url) as proxy:
        store = Store(proxy.url, Settings())
        store.migrate()
        try:
            yield Meter(proxy, store)
        finally:
            store.close()
