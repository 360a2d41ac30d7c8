"""Slots against Postgres: claims that need one, and who is woken when one is free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.run import Refusal
from celery_durable.store import in_hand, queries
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from celery_durable.checkpoint import Checkpoint
    from celery_durable.run import Claim
    from celery_durable.store.connections import Connection, Connections
    from celery_durable.store.runs import RunStore

_REFUSED = "and r.slot is null"
_IF_OPEN = """
      and (%(version)s::text is null or r.version is null or r.version = %(version)s)
      and (r.fence = %(fence)s or durable.slot_open(r, %(check)s::interval))"""
_AT_ONCE = 100
_BUDGET = 5.0


class SlotStore:
    """Statements that look at all runs of one key, and are therefore done under its lock.

    Arguments:
        connections: where to write.
        runs: the statements of single runs.
        schema: the schema's name.
        check: how long a woken run may take until its claim, before its slot is given to another one.
        version: the only version of the code whose runs may be claimed; None for all of them.
    """

    def __init__(
        self,
        connections: Connections,
        runs: RunStore,
        *,
        schema: str,
        check: timedelta,
        version: str | None = None,
    ) -> None:
        self._connections = connections
        self._runs = runs
        self._schema = schema
        self._sql = queries.load("slots", schema)
        hot = queries.load("runs", schema)
        self._claim, self._history = slotted(hot["claim"], schema), hot["history"]
        self._link = queries.load("chains", schema)["link"]
        self._check = check
        self._version = version

    def claim(
        self,
        parameters: dict[str, Any],
        link: tuple[str, int] | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> tuple[tuple[Claim, list[Checkpoint]] | Refusal, list[Stored]]:
        """Claim a run if there is a slot for it, else let it wait for one; in one round trip.

        `link` is as for a claim without slots. Returns what the claim returns, and the runs that were woken
        for slots that are free.
        """
        given = {
            **parameters,
            "slot": None,
            "limit": _AT_ONCE,
            "check": self._check,
            "version": self._version,
        }

        def work(connection: Connection) -> tuple[Any, Any, list[Any], list[Any], Any]:
            with connection.pipeline():
                connection.execute(self._sql["lock"], given)
                claimed = connection.execute(self._claim, given)
                waits = connection.execute(self._sql["wait"], given)
                in_hand.put_away_unclaimed(connection, self._schema, given["id"])
                granted = connection.execute(self._sql["grant"], given)
                history = connection.execute(self._history, given)
                if link is not None:
                    wanted = connection.execute(self._link, {"chain": link[0], "number": link[1]})
            following = wanted.fetchone() if link is not None else None
            return claimed.fetchone(), waits.fetchone(), granted.fetchall(), history.fetchall(), following

        row, waits, granted, history, following = self._connections.patiently(
            work, budget=float("inf"), give_up=give_up
        )
        woken = [Stored(**one) for one in granted]
        if row is not None:
            return self._runs.leased(row, history, following), woken
        if waits is not None:
            return Refusal.SLOT, woken
        refusal = self._runs.refusal(parameters)
        return Refusal.OWNED if refusal is Refusal.SLOTTED else refusal, woken

    def grant(self, slot: str) -> list[Stored]:
        """Wake the first runs that wait for this key, as many as it has slots; the caller publishes them."""
        return self._connections.patiently(
            lambda connection: granted(connection, self._sql, slot, self._check), budget=_BUDGET
        )


def slotted(claim: str, schema: str = "durable") -> str:
    """Return the claim of runs that need a slot: the plain one refuses them."""
    return claim.replace(_REFUSED, queries.in_schema(_IF_OPEN, schema))


def granted(connection: Connection, sql: dict[str, str], slot: str, check: timedelta) -> list[Stored]:
    """Wake who waits for a key, in one round trip."""
    given = {"slot": slot, "id": None, "check": check, "limit": _AT_ONCE}
    with connection.pipeline():
        connection.execute(sql["lock"], given)
        cursor = connection.execute(sql["grant"], given)
    return [Stored(**row) for row in cursor.fetchall()]
