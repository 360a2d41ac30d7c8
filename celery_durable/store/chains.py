"""Links of long chains against Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store import queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.store.connections import Connection, Connections, Row

_BUDGET = 15.0


class ChainStore:
    """Reads the links of chains; they are written together with the runs that name them.

    Arguments:
        connections: where to read.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._sql = queries.load("chains", schema)

    def link(self, chain: str, number: int) -> Sequence[Row]:
        """Return the row of one link, none if it was deleted."""
        return self._read("link", {"chain": chain, "number": number})

    def links(self, chain: str, number: int) -> Sequence[Row]:
        """Return the rows of a link and of all that come after it, the last of the chain first."""
        return self._read("links", {"chain": chain, "number": number})

    def _read(self, name: str, parameters: dict[str, Any]) -> list[Row]:
        def work(connection: Connection) -> list[Row]:
            return connection.execute(self._sql[name], parameters).fetchall()

        return self._connections.patiently(work, budget=_BUDGET)
