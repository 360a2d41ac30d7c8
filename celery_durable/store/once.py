"""Keys against Postgres: the first caller stores a run, the others are given its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.enqueueing import ENQUEUE_BUDGET

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store.connections import Connection, Connections
    from celery_durable.store.enqueueing import NewRuns
    from celery_durable.store.writes import Key, NewRun


class OnceStore:
    """Statements that store a run unless its key has one.

    Arguments:
        connections: where to write.
        runs: stores the run whose key was to be had.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, runs: NewRuns, *, schema: str) -> None:
        self._connections = connections
        self._runs = runs
        self._sql = queries.load("once", schema)

    def enqueue(self, run: NewRun, key: Key, message_of: Callable[[str], bytes]) -> tuple[str, str | None]:
        """Store a run if its key is to be had.

        `message_of` returns the run's message under another id, for the debounced run that it is merged into.
        Returns the id of the run that the key stands for, and the new run's state if it is a new one.
        """
        parameters = {**vars(run), **vars(key)}

        def work(connection: Connection) -> tuple[str, str | None]:
            with connection.transaction():
                holder = self._holder(connection, parameters)
                if holder != run.id and key.kind == "debounce":
                    merged = {**parameters, "id": holder, "message": message_of(holder)}
                    if connection.execute(self._sql["postpone"], merged).fetchone() is None:
                        holder = self._retake(connection, parameters)  # it has just been woken
                if holder != run.id:
                    return holder, None
                state = self._runs.add(connection, [run])[0]
                if key.kind == "singleton":
                    connection.execute(self._sql["mark"], parameters)
                return holder, state

        return self._connections.patiently(work, budget=ENQUEUE_BUDGET)

    def _holder(self, connection: Connection, parameters: dict[str, Any]) -> str:
        """Return the id of the run that has the key from now on, its row held until the commit."""
        own: str = parameters["id"]
        if connection.execute(self._sql["take"], parameters).fetchone():
            return own
        held = connection.execute(self._sql["hold"], parameters).fetchone()
        if held is None:  # deleted with its run between the two statements
            return self._holder(connection, parameters)
        seen = connection.execute(self._sql["free"], parameters).fetchone()
        if seen is None or not seen["free"]:
            return str(held["run"])
        return self._retake(connection, parameters)

    def _retake(self, connection: Connection, parameters: dict[str, Any]) -> str:
        connection.execute(self._sql["retake"], parameters)
        return str(parameters["id"])
