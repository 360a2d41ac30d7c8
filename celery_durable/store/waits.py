"""Waits in the middle of a body: one transaction and one round trip each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable import checkpoint as outcomes
from celery_durable.exceptions import LeaseLostError
from celery_durable.store import in_hand, queries
from celery_durable.store.writes import Wait, closed

if TYPE_CHECKING:
    import uuid

    from celery_durable.store.connections import Connection, Connections


@dataclass(frozen=True)
class Waited:
    """What became of a wait.

    Attributes:
        left: the run has left its worker: this attempt is over.
        stop: the run is asked to stop, and waits for nothing any more.
        outcome: `ok` or `error` when what it waited for is there, `waiting` when its time is over.
        remaining: seconds that a wait on the worker has to last.
    """

    left: bool
    stop: bool
    outcome: str = outcomes.WAITING
    output: bytes | None = None
    codec: str | None = None
    remaining: float | None = None


class WaitStore:
    """Statements of waits, each fenced and each safe to repeat after a lost answer.

    Arguments:
        connections: where to write.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._schema = schema
        self._sql = queries.load("waits", schema)

    def begin(self, run: int, fence: uuid.UUID, wait: Wait) -> Waited:
        """Store a wait that is waited for on the worker; return how long that is.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = _parameters(run, fence, wait)
        row = self._connections.patiently(
            lambda connection: connection.execute(self._sql["wait"], parameters).fetchone()
        )
        if row is None or not row["held"]:
            raise LeaseLostError(step=wait.key)
        return Waited(left=False, stop=row["cancel_requested"], remaining=row["remaining"])

    def leave(self, run: int, fence: uuid.UUID, wait: Wait) -> Waited:
        """Store a wait and leave the worker for it, unless what it waits for is there.

        Raises `LeaseLostError` when another attempt owns the run.
        """
        parameters = _parameters(run, fence, wait)

        def work(connection: Connection) -> Any:
            with connection.pipeline():
                connection.execute(self._sql["wait"], parameters)
                if wait.kind == outcomes.SIGNAL:
                    connection.execute(self._sql["receive"], parameters)
                left = connection.execute(self._sql["leave"], parameters)
                in_hand.put_away(connection, self._schema, run, fence)
            return left.fetchone()

        row = self._connections.patiently(work)
        if row is None or not (row["left"] or row["held"]):
            raise LeaseLostError(step=wait.key)
        return Waited(
            left=row["left"],
            stop=row["cancel_requested"],
            outcome=row["outcome"] or outcomes.WAITING,
            output=row["output"],
            codec=row["codec"],
        )


def _parameters(run: int, fence: uuid.UUID, wait: Wait) -> dict[str, Any]:
    return {**wait.__dict__, "run": run, "fence": fence, "closed": closed(fence)}
