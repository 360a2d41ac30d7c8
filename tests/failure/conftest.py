"""Worlds for failure tests; what went on in one is part of a failed test's report."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness import brokers, postgres
from harness.proxy import proxied
from harness.setup import Setup
from harness.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEASE = 2.0
_worlds: list[World] = []


@contextmanager
def _world(postgres_url: str, broker: str, *, proxy: bool = False, **settings: Any) -> Iterator[World]:
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="durable-world-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(postgres.fresh_database(postgres_url))
        queue, apart = stack.enter_context(brokers.queue_of_ones_own(broker))
        chosen = {"durable_lease": LEASE, "durable_check_interval": 1.0, **apart, **settings}
        between = stack.enter_context(proxied(url)) if proxy else None
        backend = f"durable+{between.url if between else url}"
        broker = backend if broker == brokers.SAME_POSTGRES else broker
        world = World(Setup(broker, backend, folder, queue, chosen), url, between)
        _worlds.append(world)
        stack.callback(_worlds.remove, world)
        stack.callback(world.leave)
        yield world


@pytest.fixture(scope="session")
def broker() -> str:
    """Return the URL of the broker that most tests use: Redis, or the Postgres that keeps the runs.

    `DURABLE_TEST_BROKER=postgres` asks for the latter.
    """
    if os.environ.get("DURABLE_TEST_BROKER") == brokers.SAME_POSTGRES:
        return brokers.SAME_POSTGRES
    if url := os.environ.get("DURABLE_TEST_REDIS"):
        return url
    if "CI" in os.environ:
        pytest.fail("DURABLE_TEST_REDIS is not set")
    return brokers.SAME_POSTGRES


@pytest.fixture(scope="session")
def new_world(postgres_url: str, broker: str) -> Callable[..., Any]:
    """Return a context manager that makes a world: another server, broker or setting than usual."""

    def make(**options: Any) -> Any:
        return _world(options.pop("postgres_url", postgres_url), options.pop("broker", broker), **options)

    return make


@pytest.fixture
def world(new_world: Callable[..., Any]) -> Iterator[World]:
    """Return a world with an empty database, no message and no worker."""
    with new_world() as made:
        yield made


@pytest.fixture
def private_postgres() -> Iterator[postgres.PrivatePostgres]:
    """Return a Postgres server that the test may stop."""
    with postgres.private_postgres() as server:
        yield server


@pytest.fixture
def private_redis() -> Iterator[brokers.PrivateRedis]:
    """Return a Redis server that the test may empty and kill."""
    with brokers.private_redis() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for world in _worlds:
            for worker in world.workers:
                report.sections.append((f"log of {worker.name}", worker.output[-8000:]))
            ledger = "\n".join(map(str, world.ledger.entries()[-60:]))
            report.sections.append(("ledger", ledger))
    return report
