"""One migrated database for all contract tests, emptied before each of them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from answering import answering

from celery_durable.config import Settings
from celery_durable.executor import journal
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from answering import Server

_EMPTY = """
do $$ declare name text; begin
    for name in select tablename from pg_tables where schemaname = 'durable' and tablename <> 'migration' loop
        execute format('delete from durable.%I', name);
    end loop;
end $$
"""


@pytest.fixture(scope="session")
def shared_url(postgres_url: str) -> Iterator[str]:
    """Return the URL of a migrated database, dropped at the end."""
    name = f"durable_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        made = Store(url, Settings())
        made.migrate()
        made.close()
        yield url
        server.execute(f"drop database if exists {name} with (force)".encode())


@pytest.fixture
def store(shared_url: str) -> Iterator[Store]:
    """Return a store on an empty, migrated database."""
    made = Store(shared_url, Settings())
    with made.connections.dedicated() as connection:
        connection.execute(f"alter database {connection.info.dbname} reset all".encode())
        connection.execute(_EMPTY)
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """Return a service that a step may call."""
    with answering() as made:
        yield made


@pytest.fixture(autouse=True)
def _writes_follow_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine is busy with: no step is late, so that none asks whether it may begin."""
    monkeypatch.setattr(journal, "_A_WHILE", float("inf"))
