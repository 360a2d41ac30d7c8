"""Each of Celery's pools: steps, retries, threads of the body's own, and the death of the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from celery_durable.exceptions import DurableError, ExhaustedError, Fatal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

FIVE = ["one", "two", "three", "four", "five"]


@pytest.fixture(scope="module", params=["prefork", "threads", "solo", "gevent"])
def pool(request: pytest.FixtureRequest, new_world: Callable[..., Any]) -> Iterator[World]:
    """Two workers of one pool, for all tests; the last one kills one of them."""
    if request.param == "gevent":
        pytest.importorskip("gevent")
    with new_world(durable_step_sleep=0.1, durable_max_recoveries=2) as world:
        world.pair(pool=request.param, concurrency=1 if request.param in ("solo", "prefork") else 4)
        yield world


def test_a_run_of_five_steps_is_done(pool: World) -> None:
    result = pool.send("flow", FIVE)

    assert result.get(timeout=10) == [f"{name} done" for name in FIVE]
    assert pool.ledger.names(run=result.id) == FIVE
    assert list(pool.tables.steps(result.id)) == FIVE


def test_runs_that_raise_leave_the_worker_and_come_back_and_the_worker_lives(pool: World) -> None:
    results = [pool.send("flaky", 2) for _ in range(3)]

    for result in results:
        assert result.get(timeout=20) == ["first done", "second done", 2]
        assert pool.ledger.names(run=result.id) == ["first", "second"]
        assert pool.tables.outcomes(result.id) == ["retry", "retry", "succeeded"]
    with pytest.raises(Fatal):
        pool.send("tail", "raise").get(timeout=10)
    assert all(worker.alive for worker in pool.workers)


def test_a_run_whose_step_waits_for_its_next_try_leaves_the_worker_and_the_worker_lives(pool: World) -> None:
    result = pool.send("persistent", 2)

    assert result.get(timeout=20) == ["first done", 3, "second done"]
    assert pool.ledger.names(run=result.id) == ["first", "moody", "moody", "moody", "second"]
    assert pool.tables.outcomes(result.id) == ["suspended", "suspended", "succeeded"]
    assert pool.tables.steps(result.id)["moody"]["tries"] == 3
    assert all(worker.alive for worker in pool.workers)


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt"])
def test_a_run_that_exits_is_handed_on_and_counted_wherever_it_is_executed(pool: World, how: str) -> None:
    """A pool child is gone then; a thread is not, and nobody else would notice."""
    result = pool.send("exits", how)

    with pytest.raises(ExhaustedError):
        result.get(timeout=30)
    run = pool.tables.run(result.id)
    assert (run["state"], run["reason"], run["recoveries"]) == ("failed", "exhausted", 6)  # and so its replay
    assert pool.ledger.names(run=result.id) == ["first"]
    assert all(worker.alive for worker in pool.workers)


@pytest.mark.parametrize("how", ["GeneratorExit", "gevent.Timeout"])
def test_what_else_is_no_exception_fails_the_run_at_once(pool: World, how: str) -> None:
    if how == "gevent.Timeout":
        pytest.importorskip("gevent")
    result = pool.send("exits", how)

    with pytest.raises(DurableError, match=f"The body raised {how.removeprefix('gevent.')}"):
        result.get(timeout=30)
    assert pool.tables.outcomes(result.id) == ["failed"]


def test_steps_called_in_threads_of_the_body_are_checkpointed(pool: World) -> None:
    names = ["left", "right", "third"]
    result = pool.send("threaded", names)

    assert result.get(timeout=10) == [f"{name} done" for name in names]
    assert set(pool.tables.steps(result.id)) == set(names)


def test_the_run_of_a_killed_worker_goes_on_at_the_other_one(pool: World) -> None:
    pool.gates.close("mid")
    result = pool.send("flow", ["first", "mid", "last"])
    pool.ledger.wait_for("start", "mid", result.id)

    pool.owner(result.id).kill9()
    pool.ledger.wait_for("start", "mid", result.id, times=2)
    pool.gates.open("mid")

    assert result.get(timeout=20) == ["first done", "mid done", "last done"]
    assert pool.ledger.names(run=result.id) == ["first", "mid", "mid", "last"]
    assert pool.tables.outcomes(result.id) == ["lost", "succeeded"]
