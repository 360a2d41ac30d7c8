"""Chords: parts that are counted without a counter, a claim on the complete one, and its body's start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.writes import Look

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection, Connections, Row
    from celery_durable.store.runs import RunStore
    from celery_durable.store.writes import NewRun, Part, PlainMessage

_BUDGET = 15.0  # seconds to wait for Postgres: the main process of a worker may stand still meanwhile
_ADD_UP = 64  # parts that a look counts one by one before somebody adds them up


class ChordStore:
    """The statements of chords.

    Arguments:
        connections: where to read and write.
        runs: stores the body, which is a run mostly.
        schema: the schema's name.
        lease: how long who found a chord complete has for joining its results and storing its body.
    """

    def __init__(self, connections: Connections, runs: RunStore, *, schema: str, lease: timedelta) -> None:
        self._connections = connections
        self._runs = runs
        self._lease = lease
        self._sql = queries.load("chords", schema)

    def expect(self, chord: str, body: bytes | None, header: bytes | None, content_type: str) -> None:
        """Remember what a chord that is about to be applied leads to.

        Arguments:
            chord: the id of its header's group.
            body: the signature of its body, None when it cannot be stored: then only a part can start it.
            header: the result ids of a header that is no plain list of tasks.
            content_type: the format of both.
        """
        self._do("expect", chord=chord, body=body, header=header, content_type=content_type)

    def resize(self, chord: str, size: int, token: uuid.UUID) -> Look:
        """Say how many parts a chord has; parts may have been returned before."""
        self._do("size", chord=chord, size=size)
        return self.look(chord, token)

    def extend(self, chord: str) -> None:
        """Say that a chord has one part more."""
        self._do("extend", chord=chord)

    def part(self, part: Part, token: uuid.UUID) -> Look:
        """Store a part that no run's finish has stored, and look, in one round trip."""

        def work(connection: Connection) -> Any:
            with connection.pipeline():
                connection.execute("begin")
                store_part(connection, self._sql, part)
                connection.execute("commit")
                looked = look(connection, self._sql, part.chord, token, self._lease)
            return looked.fetchone()

        return Look(**self._connections.patiently(work, budget=_BUDGET))

    def look(self, chord: str, token: uuid.UUID) -> Look:
        """Claim a chord if it is complete."""
        row = self._connections.patiently(
            lambda connection: look(connection, self._sql, chord, token, self._lease).fetchone(),
            budget=_BUDGET,
        )
        return Look(**(row or {}))

    def add_up(self, chord: str, look: Look) -> None:
        """Keep looks short: add up the parts there are, unless they are few or somebody else is at it."""
        if not look.complete and look.uncounted >= _ADD_UP:
            self._do("add_up", chord=chord)

    def results(self, chord: str) -> Sequence[Row]:
        """Return the parts in the order of the header."""
        return self._connections.patiently(
            lambda connection: connection.execute(self._sql["results"], {"chord": chord}).fetchall(),
            budget=_BUDGET,
        )

    def finish(
        self, chord: str, token: uuid.UUID, body: Sequence[NewRun | PlainMessage] = ()
    ) -> list[str | None] | None:
        """Store the body and close the chord in one transaction.

        Returns for each run and message of the body its state, None for one that is not to be started; and
        None for all when the claim is somebody else's by now.
        """
        parameters = {"chord": chord, "token": token}

        def work(connection: Connection) -> list[str | None] | None:
            with connection.transaction():
                if connection.execute(self._sql["finish"], parameters).fetchone() is None:
                    return None
                return self._runs.add(connection, body)

        states = self._connections.patiently(work, budget=_BUDGET)
        return None if states is None else self._runs.to_send(body, states)

    def expire(self, age: timedelta, *, batch: int = 1000) -> int:
        """Delete chords older than `age`, in batches; return how many."""
        total = 0
        while True:
            row = self._connections.patiently(
                lambda c: c.execute(self._sql["expire"], {"age": age, "limit": batch}).fetchone()
            )
            deleted = int((row or {}).get("chords", 0))
            total += deleted
            if deleted < batch:
                return total

    def _do(self, name: str, **parameters: Any) -> None:
        sql = self._sql[name]
        self._connections.patiently(lambda connection: connection.execute(sql, parameters), budget=_BUDGET)


def store_part(
    connection: Connection,
    sql: dict[str, str],
    part: Part,
    holder: int | None = None,
    fence: uuid.UUID | None = None,
) -> None:
    """Store one part in the transaction that is open."""
    connection.execute(sql["part"], {**part.__dict__, "holder": holder, "fence": fence})


def look(connection: Connection, sql: dict[str, str], chord: str, token: uuid.UUID, lease: timedelta) -> Any:
    """Look at a chord in a transaction of its own."""
    return connection.execute(sql["look"], {"chord": chord, "token": token, "lease": lease})
