"""Forks against Postgres: read a run's steps, and store a new run that begins with some of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery_durable.store import queries
from celery_durable.store.refusing import plainly

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from celery_durable.store.connections import Connection, Connections, Row

_BUDGET = 15.0


@dataclass(frozen=True)
class Source:
    """A run as it stood when it was read, to be forked.

    Attributes:
        taken_back: whether it takes back what it has done, or has done so.
    """

    key: int
    id: str
    task: str
    state: str
    revision: int
    replacements: int
    message: bytes
    body: bytes
    taken_back: bool


@dataclass(frozen=True)
class SourceStep:
    """One of its stored steps."""

    key: str
    seq: int
    outcome: str
    codec: str | None
    clock: tuple[datetime, ...]
    kind: str | None


@dataclass(frozen=True)
class NewFork:
    """A fork as it is stored.

    Attributes:
        kept: keys of the checkpoints it begins with.
        values: other outputs for some of these, with their codecs.
        clock: every time the source has read up to there.
        carrier: the kept checkpoint that carries them.
    """

    id: str
    message: bytes
    body: bytes
    version: str | None
    kept: Sequence[str]
    values: dict[str, tuple[bytes, str]]
    clock: Sequence[datetime]
    carrier: str | None


class ForkStore:
    """Statements that fork a run.

    Arguments:
        connections: where to read and write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._sql = queries.load("forks", schema)
        self._check = check

    def read(self, run_id: str) -> tuple[Source, list[SourceStep]] | None:
        """Return a run and its stored steps, None when there is no such run."""

        def work(connection: Connection) -> tuple[Row | None, Sequence[Row]]:
            source = connection.execute(self._sql["source"], {"id": run_id}).fetchone()
            if source is None:
                return None, []
            return source, connection.execute(self._sql["steps"], {"run": source["key"]}).fetchall()

        with plainly():
            row, steps = self._connections.patiently(work, budget=_BUDGET)
        if row is None:
            return None
        read = [SourceStep(**{**step, "clock": tuple(step["clock"] or ())}) for step in steps]
        return Source(**row), read

    def fork(self, source: Source, new: NewFork, *, actor: str | None, detail: dict[str, Any]) -> bool:
        """Store a fork with its first checkpoints; False when the source is not what it was when read.

        Safe to repeat after a lost answer: the new run's id says that it is there already.
        """
        parameters = {
            **new.__dict__,
            "run": source.key,
            "revision": source.revision,
            "replacements": source.replacements,
            "check": self._check,
            "clock": list(new.clock),
            "kept": list(new.kept),
            "keys": list(new.values),
            "outputs": [output for output, _ in new.values.values()],
            "codecs": [codec for _, codec in new.values.values()],
            "actor": actor,
            "source_detail": json.dumps({**detail, "fork": new.id}),
            "fork_detail": json.dumps({**detail, "of": source.id}),
        }

        def work(connection: Connection) -> bool:
            with connection.transaction():
                if connection.execute(self._sql["lock"], parameters).fetchone() is None:
                    return False
                row = connection.execute(self._sql["fork"], parameters).fetchone()
                if row is not None:  # else it is this very write, answered late
                    stored = {**parameters, "fork": row["key"]}
                    connection.execute(self._sql["seed"], stored)
                    connection.execute(self._sql["note"], stored)
            return True

        with plainly():
            return self._connections.patiently(work, budget=_BUDGET)
