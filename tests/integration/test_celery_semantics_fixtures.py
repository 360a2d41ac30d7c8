"""Celery's own pytest fixtures serve an app whose tasks are durable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery.contrib.pytest import (  # noqa: F401  (fixtures are found by name)
    celery_app,
    celery_class_tasks,
    celery_config,
    celery_enable_logging,
    celery_includes,
    celery_parameters,
    celery_worker,
    celery_worker_parameters,
    celery_worker_pool,
    depends_on_current_app,
    use_celery_app_trap,
)
from harness import brokers

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery


@pytest.fixture
def settings(database_url: str) -> Iterator[dict[str, Any]]:
    broker = brokers.service("DURABLE_TEST_REDIS")
    with brokers.queue_of_ones_own(broker) as (queue, apart):
        yield {
            "broker_url": broker,
            "result_backend": f"durable+{database_url}",
            "task_default_queue": queue,
            "durable_auto_migrate": True,
            **apart,
        }


@pytest.fixture
def app(celery_app: Celery, settings: dict[str, Any]) -> Iterator[Celery]:  # noqa: F811
    celery_app.conf.update(settings)
    yield celery_app
    backend: Any = celery_app.backend
    backend.store.close()


@durable.step
def doubled(number: int) -> int:
    return number * 2


def test_celery_worker_runs_durable_tasks(app: Celery, request: pytest.FixtureRequest) -> None:
    @app.task(base=durable.DurableTask, name="fixtures.double", shared=False)
    def double(number: int) -> int:
        return doubled(number)

    @app.task(name="fixtures.plain", shared=False)
    def plain(number: int) -> int:
        return number

    request.getfixturevalue("celery_worker").reload()
    assert double.delay(4).get(timeout=20) == 8
    assert plain.delay(4).get(timeout=20) == 4
    assert (double.s(1) | plain.s() | double.s()).delay().get(timeout=20) == 4


def test_celery_app_alone_calls_and_applies_tasks(app: Celery) -> None:
    @app.task(base=durable.DurableTask, name="fixtures.alone", shared=False)
    def double(number: int) -> int:
        return doubled(number)

    assert double(4) == 8
    assert double.apply((4,)).get() == 8
    app.conf.task_always_eager = True
    assert double.delay(4).get() == 8


def test_a_run_that_raised_is_retried_by_default_unless_it_throws(
    app: Celery, request: pytest.FixtureRequest
) -> None:
    attempts: list[str] = []

    def shaky(how: str) -> str:
        attempts.append(how)
        if attempts.count(how) < 2:
            raise {"retried": ValueError, "thrown": KeyError, "fatal": durable.Fatal}[how](how)
        return how

    task = app.task(shaky, base=durable.DurableTask, name="fixtures.shaky", shared=False, throws=(KeyError,))
    request.getfixturevalue("celery_worker").reload()
    assert task.delay("retried").get(timeout=20) == "retried"
    for how, error in (("thrown", KeyError), ("fatal", durable.Fatal)):
        with pytest.raises(error):
            task.delay(how).get(timeout=20)
    assert attempts == ["retried", "retried", "thrown", "fatal"]
