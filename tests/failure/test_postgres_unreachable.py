"""Postgres takes the connection and never answers: everybody who waits for it is told in time."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import TimeoutError as ResultTimeoutError
from contending import together
from harness.setup import Setup

from celery_durable.exceptions import StoreUnavailableError
from celery_durable.store import connections, enqueueing, results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Celery

CONNECT, BUDGET = 2, 2.0
IN_TIME = BUDGET + 2 * CONNECT + 1.0  # a first try, its budget, and a last try that began within it


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """Return an app whose Postgres hangs, with shorter budgets than users have."""
    monkeypatch.setitem(connections.KEEPALIVE, "connect_timeout", CONNECT)
    monkeypatch.setattr(enqueueing, "ENQUEUE_BUDGET", BUDGET)
    monkeypatch.setattr(results, "_READ_BUDGET", BUDGET)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as deaf:
        url = f"durable+postgresql://nobody@127.0.0.1:{deaf.getsockname()[1]}/nowhere"
        made = Setup("memory://", url, str(tmp_path)).app()
        yield made
        made.close()


def seconds(work: Callable[[], Any], error: type[Exception] = StoreUnavailableError) -> float:
    """Return how long it takes `work` to say that Postgres is away."""
    began = time.monotonic()
    with pytest.raises(error):
        work()
    return time.monotonic() - began


def test_callers_and_those_who_wait_for_results_hear_within_their_budget_however_many_they_are(
    app: Celery,
) -> None:
    def send() -> float:
        return seconds(lambda: app.tasks["plain"].delay("x"))

    def wait() -> float:
        return seconds(lambda: app.AsyncResult("some-id").get(timeout=2), ResultTimeoutError)

    def look() -> float:
        return seconds(lambda: app.AsyncResult("some-id").state)

    took = together(*[send] * 8, wait, look)

    assert max(took) < IN_TIME, took


def test_a_wait_without_a_timeout_outlasts_the_outage_budget_and_no_more(app: Celery) -> None:
    app.conf.durable_outage_budget = BUDGET

    took = seconds(lambda: app.AsyncResult("some-id").get())

    assert BUDGET <= took < IN_TIME


def test_a_wait_that_timed_out_because_postgres_was_away_says_so(app: Celery) -> None:
    with pytest.raises(ResultTimeoutError) as caught:
        app.AsyncResult("some-id").get(timeout=0.1)
    assert isinstance(caught.value.__cause__, StoreUnavailableError)


def test_the_budgets_that_users_have_are_seconds() -> None:
    assert results._READ_BUDGET <= 5
    assert enqueueing.ENQUEUE_BUDGET <= 15
