"""Migrations: ordered, append-only SQL files, applied under one lock and in one transaction.

`NNNN_name.pre.sql` may run while workers of the release before are still running; `NNNN_name.post.sql`
only when they are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from psycopg import errors

from celery_durable.exceptions import PostgresVersionError, SchemaMissingError, SchemaVersionError, StoreError
from celery_durable.store.queries import in_schema, quote_identifier

if TYPE_CHECKING:
    from celery_durable.store.connections import Connection

_FILE = re.compile(r"^(\d{4})_(\w+)\.(pre|post)\.sql$")
_LOCK = 4_721_938_501_667  # one lock for all migrators of a server; any number that nobody else uses
_OLDEST_POSTGRES = 14


@dataclass(frozen=True)
class Migration:
    """One file of `migrations/`."""

    number: int
    name: str
    phase: str
    sql: str


@cache
def migrations() -> tuple[Migration, ...]:
    """Return every migration this release knows, oldest first."""
    found = [
        Migration(int(match[1]), match[2], match[3], entry.read_text("utf-8"))
        for entry in resources.files("celery_durable.store").joinpath("migrations").iterdir()
        if (match := _FILE.match(entry.name))
    ]
    return tuple(sorted(found, key=lambda migration: migration.number))


def newest() -> int:
    """Return the version of the schema that this release is written for."""
    return migrations()[-1].number


def installed(connection: Connection, schema: str = "durable") -> int:
    """Return the schema's version in this database; 0 when there is none."""
    table = f"{quote_identifier(schema)}.migration"
    try:
        row = connection.execute(f"select max(number) as number from {table}").fetchone()  # noqa: S608  (quoted)
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return 0
    return (row and row["number"]) or 0


def migrate(connection: Connection, schema: str = "durable", *, phase: str = "post") -> list[Migration]:
    """Bring the schema up to date and return what was applied.

    Safe to run from any number of processes at once: they queue on one lock. `phase="pre"` stops before the
    first `post` migration. Raises `SchemaVersionError` when the database is ahead of this release.
    """
    require_postgres(connection)
    applied: list[Migration] = []
    with connection.transaction():
        connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        have = _prepare(connection, schema)
        if have > newest():
            raise _ahead(have)
        for migration in migrations():
            if migration.number <= have:
                continue
            if phase == "pre" and migration.phase == "post":
                break
            connection.execute(in_schema(migration.sql, schema).encode(), prepare=False)
            connection.execute(
                f"insert into {quote_identifier(schema)}.migration (number, name, phase) values (%s, %s, %s)",  # noqa: S608
                (migration.number, migration.name, migration.phase),
            )
            applied.append(migration)
    return applied


def _prepare(connection: Connection, schema: str) -> int:
    quoted = quote_identifier(schema)
    row = connection.execute(
        "select to_regclass(%s) is not null as there, to_regnamespace(%s) is not null as schema",
        (f"{quoted}.migration", quoted),
    ).fetchone()
    if row and row["there"]:
        return installed(connection, schema)
    if not (row and row["schema"]):  # not `if not exists`: that asks for the right to create schemas even so
        connection.execute(f"create schema {quoted}")
    connection.execute(
        f"create table {quoted}.migration (number integer primary key, name text not null,"
        f" phase text not null default 'post',"
        f" applied_at timestamptz not null default now())"
    )
    return 0


def check(connection: Connection, schema: str = "durable") -> None:
    """Raise unless this release can work with the schema in this database.

    Raises `PostgresVersionError`, `SchemaMissingError` or `SchemaVersionError`, each naming what to do, and
    `StoreError` where transactions are not `read committed` by default.
    """
    require_postgres(connection)
    _require_fresh_snapshots(connection)
    have, want = installed(connection, schema), newest()
    if have == 0:
        message = (
            f"The schema {schema!r} of celery-durable is not in the database "
            f"{connection.info.dbname!r}. Run: celery -A <app> durable init"
        )
        raise SchemaMissingError(message, schema=schema)
    pending = [m for m in migrations() if m.number > have]
    if pending and any(m.phase == "pre" for m in pending):
        message = (
            f"The schema {schema!r} is at version {have}, this release needs {want}. "
            f"Run: celery -A <app> durable init"
        )
        raise SchemaVersionError(message, installed=have, needed=want)
    if have > want and _left_behind(connection, schema):
        raise _ahead(have)


def _left_behind(connection: Connection, schema: str) -> bool:
    """Whether a migration that this release does not know has taken away what it needs.

    Workers of the release before go on working while only `pre` migrations of the next one are applied.
    """
    row = connection.execute(
        f"select exists (select from {quote_identifier(schema)}.migration"  # noqa: S608  (quoted)
        f" where number > %s and phase <> 'pre') as left_behind",
        (newest(),),
    ).fetchone()
    return row is not None and bool(row["left_behind"])


def _require_fresh_snapshots(connection: Connection) -> None:
    """Raise where transactions keep one snapshot: a claim's history must be younger than its lock."""
    row = connection.execute(
        "select current_setting('transaction_isolation') as level, current_user as role"
    ).fetchone()
    if row is not None and row["level"] != "read committed":
        message = (
            f"Transactions of {row['role']!r} in {connection.info.dbname!r} are {row['level']!r} by default; "
            f"celery-durable needs each statement to see what was committed before it. Run: "
            f"alter role {row['role']} set default_transaction_isolation = 'read committed'"
        )
        raise StoreError(message, level=row["level"])


def _ahead(have: int) -> SchemaVersionError:
    message = (
        f"The database's schema is at version {have}, newer than this release of celery-durable "
        f"(version {newest()}). Upgrade celery-durable: pip install -U celery-durable"
    )
    return SchemaVersionError(message, installed=have, needed=newest())


def require_postgres(connection: Connection) -> None:
    """Raise `PostgresVersionError` for a server older than the oldest supported one."""
    version = connection.info.server_version // 10_000
    if version < _OLDEST_POSTGRES:
        message = f"celery-durable needs Postgres {_OLDEST_POSTGRES} or newer; this server is {version}"
        raise PostgresVersionError(message, version=version)
