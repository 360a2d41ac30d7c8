"""The schema comes to be once, whoever brings it, and says what to do where it does not fit."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
from importlib import resources
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from contending import wait_until_blocked
from harness.waiting import eventually

from celery_durable.config import Settings
from celery_durable.exceptions import PostgresVersionError, SchemaMissingError, SchemaVersionError
from celery_durable.store import Store, migrate
from celery_durable.store.migrate import Migration

if TYPE_CHECKING:
    from collections.abc import Iterator

# The SHA-256 of every migration that was ever released. A release adds its files here; no line ever changes.
RELEASED: dict[str, str] = {}
LATER = (
    Migration(1001, "column", "pre", "alter table durable.run add column later text"),
    Migration(1002, "clean", "post", "alter table durable.run drop column later"),
    Migration(1003, "index", "pre", "create index run_later on durable.run (task)"),
)
MIGRATOR = """
import sys, psycopg
from psycopg.rows import dict_row
from celery_durable.store import migrate
if len(sys.argv) > 2:
    known = migrate.migrations()
    stuck = migrate.Migration(1001, "stuck", "pre", "select pg_advisory_xact_lock(99)")
    migrate.migrations = lambda: (*known, stuck)
with psycopg.connect(sys.argv[1], autocommit=True, row_factory=dict_row) as connection:
    print(len(migrate.migrate(connection)))
"""

NUMBERS = [migration.number for migration in migrate.migrations()]


@pytest.fixture
def empty(database_url: str) -> Iterator[Store]:
    """Return a store on a database without a schema."""
    made = Store(database_url, Settings())
    yield made
    made.close()


def migrator(store: Store, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MIGRATOR, store.url, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def versions(store: Store) -> list[int]:
    with store.connections.dedicated() as connection:
        rows = connection.execute("select number from durable.migration order by number").fetchall()
    return [row["number"] for row in rows]


def files() -> dict[str, bytes]:
    folder = resources.files("celery_durable.store") / "migrations"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(".sql")}


def changed(released: dict[str, str], present: dict[str, bytes]) -> list[str]:
    return [
        name
        for name, checksum in released.items()
        if name not in present or hashlib.sha256(present[name]).hexdigest() != checksum
    ]


def test_a_released_migration_never_changes() -> None:
    assert changed(RELEASED, files()) == []


def test_a_changed_or_missing_migration_is_noticed() -> None:
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files().items()}
    (name, content), *_ = files().items()

    assert changed(sums, files()) == []
    assert changed(sums, {name: content + b" "})[0] == name
    assert changed({"0000_gone.pre.sql": "0"}, files()) == ["0000_gone.pre.sql"]


def test_migrations_have_a_number_each() -> None:
    numbers = [migration.number for migration in migrate.migrations()]

    assert numbers == sorted(set(numbers))
    assert all(re.fullmatch(r"\d{4}_\w+\.(pre|post)\.sql", name) for name in files())


def test_migrators_that_start_at_once_apply_everything_once(empty: Store) -> None:
    with empty.connections.dedicated() as barrier:
        barrier.execute("select pg_advisory_lock(%s)", (migrate._LOCK,))
        processes = [migrator(empty) for _ in range(3)]
        wait_until_blocked(empty, 3)
        barrier.execute("select pg_advisory_unlock(%s)", (migrate._LOCK,))
    answers = [process.communicate(timeout=30) for process in processes]

    assert sorted(int(out) for out, _ in answers) == [0, 0, len(NUMBERS)], answers
    assert versions(empty) == NUMBERS


def test_a_migrator_killed_half_way_leaves_nothing_and_the_next_one_does_it_all(empty: Store) -> None:
    with empty.connections.dedicated() as obstacle:
        obstacle.execute("select pg_advisory_lock(99)")
        killed = migrator(empty, "with a migration that waits")
        wait_until_blocked(empty)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=30)
        assert migrate.installed(obstacle) == 0
        obstacle.execute("select pg_advisory_unlock(99)")

    assert len(empty.migrate()) == len(NUMBERS)
    assert versions(empty) == NUMBERS


def test_a_migration_that_fails_takes_the_others_with_it(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrate.migrations()
    broken = Migration(1001, "broken", "pre", "create index on durable.nothing (key)")
    monkeypatch.setattr(migrate, "migrations", lambda: (*known, broken))

    with pytest.raises(psycopg.errors.UndefinedTable):
        empty.migrate()

    monkeypatch.undo()
    with empty.connections.dedicated() as connection:
        assert migrate.installed(connection) == 0
    empty.migrate()


def test_migrating_again_changes_nothing(empty: Store) -> None:
    assert len(empty.migrate()) == len(NUMBERS)
    assert empty.migrate() == []


def test_a_database_without_the_schema_is_an_error_that_names_the_command(empty: Store) -> None:
    with pytest.raises(SchemaMissingError, match="celery -A <app> durable init") as error:
        empty.runs.reported("x")

    assert error.value.facts["schema"] == "durable"


def test_a_store_that_may_migrates_at_its_first_use(database_url: str) -> None:
    store = Store(database_url, Settings(auto_migrate=True))
    store.runs.reported("x")
    store.close()

    assert versions(store) == NUMBERS


def test_a_schema_from_the_future_is_an_error_that_says_to_upgrade(empty: Store) -> None:
    empty.migrate()
    with empty.connections.dedicated() as connection:
        connection.execute("insert into durable.migration (number, name) values (4711, 'future')")

    with pytest.raises(SchemaVersionError, match="pip install -U celery-durable") as error:
        empty.runs.reported("x")
    assert (error.value.facts["installed"], error.value.facts["needed"]) == (4711, migrate.newest())
    with pytest.raises(SchemaVersionError, match="newer than this release"):
        empty.migrate()
    assert versions(empty)[-1] == 4711


def test_a_schema_ahead_by_what_old_workers_can_bear_is_used_until_the_post_phase(
    empty: Store,
) -> None:
    empty.migrate()
    later = "insert into durable.migration (number, name, phase) values (%s, 'later', %s)"
    with empty.connections.dedicated() as connection:
        connection.execute(later, (4711, "pre"))

        migrate.check(connection)
        connection.execute(later, (4712, "post"))
        with pytest.raises(SchemaVersionError, match="newer than this release"):
            migrate.check(connection)


def with_later(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    known = migrate.migrations()
    monkeypatch.setattr(migrate, "migrations", lambda: (*known, *LATER[:count]))


def test_the_pre_phase_stops_before_what_old_workers_cannot_bear(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.migrate()
    with_later(monkeypatch, 3)
    with empty.connections.dedicated() as connection:
        before = migrate.migrate(connection, phase="pre")
        after = migrate.migrate(connection)

    assert [migration.number for migration in before] == [1001]
    assert [migration.number for migration in after] == [1002, 1003]


def test_new_code_works_before_the_post_phase_and_not_before_the_pre_phase(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.migrate()
    with_later(monkeypatch, 2)
    with empty.connections.dedicated() as connection:
        with pytest.raises(SchemaVersionError, match="celery -A <app> durable init"):
            migrate.check(connection)
        migrate.migrate(connection, phase="pre")

        migrate.check(connection)


@pytest.mark.parametrize(("number", "accepted"), [(130021, False), (140000, True), (180006, True)])
def test_a_server_that_is_too_old_is_named(number: int, accepted: bool) -> None:  # noqa: FBT001
    server: Any = SimpleNamespace(info=SimpleNamespace(server_version=number))
    if accepted:
        migrate.require_postgres(server)
        return
    with pytest.raises(PostgresVersionError, match="Postgres 14 or newer; this server is 13"):
        migrate.require_postgres(server)


def test_who_asks_for_the_version_while_somebody_migrates_waits_for_nobody(empty: Store) -> None:
    """A worker that starts during `init` sees the schema that is there, and says so at once."""
    with empty.connections.dedicated() as migrating, migrating.transaction():
        migrate.migrate(migrating)
        with empty.connections.dedicated() as other:
            assert migrate.installed(other) == 0
    with empty.connections.dedicated() as other:
        eventually(lambda: migrate.installed(other) == migrate.newest(), timeout=5)
