"""The pytest plugin: fixtures for the tests of durable tasks. Importing it costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.testing.player import Player


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the setting that names the app under test."""
    parser.addini("durable_app", "the Celery app that durable_app is, such as shop.celery:app", default="")


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[str]:
    """The URL of a Postgres server on which databases may be created; override it to use one of yours."""
    from celery_durable.testing.server import server

    with server() as url:
        yield url


@pytest.fixture(scope="session")
def durable_database(durable_postgres: str) -> Iterator[str]:
    """The URL of a database for the whole session."""
    from celery_durable.store.rehearsal import create_database, drop_database

    url = create_database(durable_postgres)
    yield url
    drop_database(durable_postgres, url)


@pytest.fixture
def durable_store(durable_database: str) -> Iterator[Store]:
    """An empty store in a Postgres that needs no server; `durable_store.url` is its URL."""
    from celery_durable.config import Settings
    from celery_durable.store import Store
    from celery_durable.store.rehearsal import Rehearsal

    store = Store(durable_database, Settings())
    store.migrate()
    Rehearsal(store.connections, schema=store.settings.schema).empty()
    yield store
    store.connections.close()


@pytest.fixture
def durable_settings() -> dict[str, Any]:
    """Celery settings for `durable_app`, beside broker and result backend; override it."""
    return {}


@pytest.fixture
def durable_app(
    request: pytest.FixtureRequest,
    durable_store: Store,
    durable_settings: dict[str, Any],
) -> Iterator[Celery]:
    """The app under test, pointed at `durable_store`, which is its broker, too.

    It is the app that the setting `durable_app` names, or else a new one whose tasks are durable. Tasks find
    it as the current app.
    """
    from celery import current_app

    from celery_durable.testing.apps import named, pointed

    proxy: Any = current_app
    before = proxy._get_current_object()  # noqa: SLF001
    app = named(request.config.getini("durable_app"))
    url = f"durable+{durable_store.url}"
    with pointed(app, backend=url, broker=url, **durable_settings):
        app.set_current()
        try:
            yield app
        finally:
            before.set_current()


@pytest.fixture
def durable_worker_options() -> dict[str, Any]:
    """Options of `durable_worker`: `pool`, `concurrency` and what else Celery's `WorkController` takes."""
    return {}


@pytest.fixture
def durable_worker(durable_app: Celery, durable_worker_options: dict[str, Any]) -> Iterator[Any]:
    """A worker of `durable_app` in a thread of this process, with heartbeat and keeper; yields it.

    Its pool is made of threads, so that what the test patches holds in the tasks, too. Wait for results as
    ever: `task.delay(1).get(timeout=10)`.
    """
    from celery_durable.testing.workers import worker

    with worker(durable_app, **durable_worker_options) as running:
        yield running


@pytest.fixture
def durable_player(request: pytest.FixtureRequest, durable_app: Celery) -> Player:
    """Executes runs of `durable_app` in the test itself; turns the clock instead of waiting for timers."""
    from celery_durable.testing.player import Player

    _alone(request)
    return Player(durable_app)


@pytest.fixture
def crash_after(request: pytest.FixtureRequest, durable_app: Celery) -> Callable[..., Any]:
    """Execute a task whose worker dies at a step's checkpoint: `crash_after("charge", fulfil.s(42))`."""
    from celery_durable.testing.crashes import Crashes

    _alone(request)

    def crash(step: str, signature: Any, *, kill: bool = False, **options: Any) -> Any:
        return Crashes(durable_app, kill=kill).at(step, signature, **options)

    return crash


@pytest.fixture
def crash_everywhere(request: pytest.FixtureRequest, durable_app: Celery) -> Callable[..., list[str]]:
    """Execute a task once for each of its checkpoints, dying there, and compare what it did."""
    from celery_durable.testing.crashes import Crashes

    _alone(request)

    def crash(signature: Any, *, kill: bool = False, **options: Any) -> list[str]:
        return Crashes(durable_app, kill=kill).everywhere(signature, **options)

    return crash


def _alone(request: pytest.FixtureRequest) -> None:
    if "durable_worker" in request.fixturenames:
        message = (
            f"{request.fixturename} executes runs itself, durable_worker would take them: use one of them"
        )
        raise pytest.UsageError(message)
