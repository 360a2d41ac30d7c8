"""Worlds of the integration tests."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from awaiting import Scene, scene_on
from harness import brokers, postgres
from harness.setup import Setup
from harness.world import World
from oddities.world import odd_world
from semantics.world import Semantics, semantics_on

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def _semantics(postgres_url: str, broker: str, **settings: Any) -> Iterator[Semantics]:
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="durable-semantics-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(postgres.fresh_database(postgres_url))
        queue, apart = stack.enter_context(brokers.queue_of_ones_own(broker))
        chosen = {"durable_lease": 10.0, "durable_check_interval": 5.0, **apart, **settings}
        setup = Setup(broker, f"durable+{url}", folder, queue, chosen)
        yield stack.enter_context(semantics_on(setup, url))


@pytest.fixture(scope="session")
def on_redis(postgres_url: str) -> Iterator[Semantics]:
    """Return an app on Redis with plain and durable tasks, and one worker for all tests."""
    with _semantics(postgres_url, brokers.service("DURABLE_TEST_REDIS")) as made:
        yield made


@pytest.fixture(scope="module")
def on_rabbitmq(postgres_url: str) -> Iterator[Semantics]:
    """Return the same on RabbitMQ."""
    with _semantics(postgres_url, brokers.service("DURABLE_TEST_AMQP"), task_queue_max_priority=10) as made:
        yield made


@pytest.fixture(scope="session")
def odd(postgres_url: str) -> Iterator[World]:
    """Return an app whose tasks do unusual things, and one worker for all tests."""
    with odd_world(postgres_url, brokers.service("DURABLE_TEST_REDIS")) as made:
        made.worker(app="oddities.app", concurrency=2)
        yield made


@pytest.fixture(scope="session")
def url(postgres_url: str) -> Iterator[str]:
    """Return the URL of one database for all who only wait."""
    with postgres.fresh_database(postgres_url) as made:
        yield made


@pytest.fixture
def scene(url: str) -> Iterator[Scene]:
    """Return an app that waits for results through a proxy."""
    with scene_on(url) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and call.when == "call":
        for world in getattr(item, "funcargs", {}).values():
            if isinstance(world, Semantics):
                report.sections.append((f"log of {world.worker.name}", world.worker.output[-6000:]))
            elif isinstance(world, World):
                logs = [(f"log of {one.name}", one.output[-6000:]) for one in world.workers]
                report.sections.extend(logs)
    return report
