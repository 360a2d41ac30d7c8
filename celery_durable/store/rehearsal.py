"""Databases that serve a test and are thrown away, and what is done in them without a worker."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg

from celery_durable.exceptions import ConfigurationError
from celery_durable.store import queries
from celery_durable.store.url import conninfo
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from celery_durable.store.connections import Connection, Connections

_EMPTY = """
do $$ declare name text; begin
    for name in select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = {schema} and c.relkind in ('r', 'p') and c.relname <> 'migration'
    loop
        execute format('delete from %I.%I', {schema}, name);
    end loop;
end $$
"""


def create_database(server_url: str) -> str:
    """Create a database under a name of its own; return its URL."""
    name = f"celery_durable_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
    parts = urlsplit(server_url)
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?{parts.query}" if parts.query else "")


def drop_database(server_url: str, url: str) -> None:
    """Drop a database, whoever is connected to it."""
    name = urlsplit(url).path.strip("/")
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"drop database if exists {name} with (force)".encode())


def answers(url: str) -> bool:
    """Say whether a server answers at a backend URL."""
    try:
        psycopg.connect(conninfo(url), connect_timeout=3).close()
    except psycopg.OperationalError:
        return False
    return True


def _require_scratch(connection: Connection) -> None:
    name = connection.info.dbname
    if "test" not in name:
        message = (
            f"The database {name!r} would be emptied, and its clock turned: point the app at one whose name "
            f"contains 'test', as the pytest fixtures do"
        )
        raise ConfigurationError(message)


class Rehearsal:
    """Statements of tests on a database of their own.

    Arguments:
        connections: where to execute them.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._schema = schema
        self._sql = queries.load("rehearsal", schema)

    def empty(self) -> None:
        """Delete every row; set the clock right.

        Raises `ConfigurationError`, as `turn_clock` does, for a database that is not for tests by its name.
        """
        literal = "'" + self._schema.replace("'", "''") + "'"
        with self._connections.dedicated() as connection:
            _require_scratch(connection)
            connection.execute(_EMPTY.format(schema=literal).encode(), prepare=False)
            self._set_clock(connection, None)

    def turn_clock(self, seconds: float) -> None:
        """Move the database's clock forward, for connections opened from now on."""
        with self._connections.dedicated() as connection:
            _require_scratch(connection)
            row = connection.execute(self._sql["ahead"], {"seconds": seconds}).fetchone()
            self._set_clock(connection, str(row and row["ahead"]))
        self._connections.close()

    def next_pending(self) -> Stored | None:
        """Return the message of the oldest run that could be claimed."""
        row = self._one("next_pending")
        return row and Stored(**row)

    def next_timer(self) -> float | None:
        """Return the seconds until time makes something happen; None when nothing waits for a time."""
        seconds: float | None = self._one("next_timer")["seconds"]
        return seconds

    def untold(self) -> bool:
        """Say whether something is left that a worker would have told or sent, had it not died."""
        return bool(self._one("untold")["untold"])

    def unfinished(self) -> list[dict[str, Any]]:
        """Return the runs that are not over."""
        return self._connections.once(lambda one: one.execute(self._sql["unfinished"]).fetchall())

    def _one(self, name: str) -> Any:
        def work(connection: Connection) -> Any:
            return connection.execute(self._sql[name]).fetchone()

        return self._connections.once(work)

    def _set_clock(self, connection: Connection, ahead: str | None) -> None:
        database = queries.quote_identifier(connection.info.dbname)
        setting = "reset durable.clock_offset" if ahead is None else f"set durable.clock_offset = '{ahead}'"
        connection.execute(f"alter database {database} {setting}".encode(), prepare=False)
