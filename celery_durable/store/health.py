"""What `doctor` measures, and setting up the schema: all that works before the schema is there."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from celery_durable.store import migrate, queries
from celery_durable.store.refusing import plainly

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime, timedelta

    from celery_durable.store.connections import Connection, Connections

T = TypeVar("T")

_PINGS = 5


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server, as one connection of this process sees it.

    Attributes:
        host: where libpq connected to.
        latency: seconds of the fastest of some round trips.
        clock_ahead: seconds by which the database's clock is ahead of this machine's.
        pooled: whether a connection pooler such as PgBouncer sits in between.
    """

    host: str
    latency: float
    clock_ahead: float
    pooled: bool
    database: str
    role: str
    version: str
    major: int
    pid: int
    standby: bool
    clock_offset: timedelta
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    autovacuum: bool
    superuser: bool
    sees_sessions: bool
    max_connections: int
    connections: int


@dataclass(frozen=True, kw_only=True)
class Holder:
    """What keeps dead rows alive: a `session`, a `prepared transaction` or a `replication slot`."""

    kind: str
    name: str
    owner: str | None
    application: str | None
    seconds: float | None
    transactions: int | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the schema: privileges of this role, live and dead rows, size."""

    name: str
    may_select: bool
    may_insert: bool
    may_update: bool
    may_delete: bool
    live: int
    dead: int
    vacuumed_at: datetime | None
    bytes: int


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker process with a row; `silent` is the seconds since its last heartbeat."""

    id: int
    hostname: str
    pid: int
    version: str
    silent: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Leader:
    """The holder of the leader lease, which ends in `remaining` seconds."""

    hostname: str
    term: int
    remaining: float


@dataclass(frozen=True, kw_only=True)
class Ailing:
    """Runs of one kind that something should have moved on; `seconds` is the longest of them, `ids` a few."""

    kind: str
    runs: int
    seconds: float | None
    ids: Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class Health:
    """Everything measured at one moment; what lies in the schema is empty when there is none."""

    server: Server
    installed: int
    newest: int
    schema: str
    held: tuple[Holder, ...] = ()
    tables: tuple[Table, ...] = ()
    workers: tuple[WorkerRow, ...] = ()
    leader: Leader | None = None
    ailing: tuple[Ailing, ...] = ()


class HealthStore:
    """Measures and migrates on connections of its own, without asking for a schema first.

    Arguments:
        connections: where to connect.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self.schema = schema
        self._sql = queries.load("health", schema)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with plainly(), self._connections.dedicated() as connection:
            yield connection

    def plan(self) -> tuple[int, list[migrate.Migration]]:
        """Return the schema's version in the database and the migrations that are still to be applied."""
        with self._connected() as connection:
            migrate.require_postgres(connection)
            have = migrate.installed(connection, self.schema)
        return have, [migration for migration in migrate.migrations() if migration.number > have]

    def migrate(self, *, phase: str = "post") -> list[migrate.Migration]:
        """Apply what is missing and return it; the phase `pre` stops before the first `post` migration."""
        with self._connected() as connection:
            return migrate.migrate(connection, self.schema, phase=phase)

    def examine(self) -> Health:
        """Measure everything once.

        Raises `StoreError` when Postgres does not answer or refuses.
        """
        with self._connected() as connection:
            have = migrate.installed(connection, self.schema)
            health = partial(
                Health,
                server=self._server(connection),
                held=self._all(connection, "held", Holder),
                installed=have,
                newest=migrate.newest(),
                schema=self.schema,
            )
            if not 0 < have <= migrate.newest():
                return health()
            tables = self._all(connection, "tables", Table)
            if not all(table.may_select for table in tables):
                return health(tables=tables)
            leaders = self._all(connection, "leader", Leader)
            return health(
                tables=tables,
                workers=self._all(connection, "workers", WorkerRow),
                leader=leaders[0] if leaders else None,
                ailing=self._all(connection, "ailing", Ailing),
            )

    def _all(self, connection: Connection, name: str, kind: type[T]) -> tuple[T, ...]:
        rows = connection.execute(self._sql[name], {"schema": self.schema}).fetchall()
        return tuple(kind(**row) for row in rows)

    def _server(self, connection: Connection) -> Server:
        info = connection.info
        latency, ahead = float("inf"), 0.0
        for _ in range(_PINGS):  # the fastest answer says most about the clocks
            sent, started = time.time(), time.perf_counter()
            answer = connection.execute(self._sql["ping"]).fetchone()
            took = time.perf_counter() - started
            if answer is not None and took < latency:
                latency, ahead = took, answer["epoch"] - (sent + took / 2)
        row = connection.execute(self._sql["server"]).fetchone() or {}
        return Server(
            host=f"{info.host}:{info.port}",
            latency=latency,
            clock_ahead=ahead,
            # A pooler answers the connection itself and makes up the process id it says that it is.
            pooled=info.backend_pid != row["pid"],
            **row,
        )
