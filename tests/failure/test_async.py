"""`async def` tasks in real workers of every pool, and what becomes of them when those die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

STEPS = {"[1]/work_later", "[1]/work_later#2", "[2]/work_later", "[2]/work_later#2", "last"}


@pytest.fixture(scope="module", params=["prefork", "threads", "solo"])
def pool(request: pytest.FixtureRequest, new_world: Callable[..., Any]) -> Iterator[World]:
    """Two workers of one pool, for all tests; the last one kills one of them."""
    with new_world(durable_step_sleep=0.1) as world:
        world.pair(pool=request.param, concurrency=4 if request.param == "threads" else 1)
        yield world


def test_steps_are_executed_at_once_and_stored_under_stable_keys(pool: World) -> None:
    result = pool.send("concurrent", ["a", "b"], 0.05)

    assert result.get(timeout=10) == ["a2 done", "b2 done", "last done"]
    assert set(pool.tables.steps(result.id)) == STEPS


def test_a_body_that_raises_is_retried_and_knows_its_request(pool: World) -> None:
    results = [pool.send("restless", 1) for _ in range(4)]

    loops = set()
    for result in results:
        first, run, retries, child, loop, pid = result.get(timeout=20)
        assert (first, run, retries) == ("first done", result.id, 1)
        assert pool.ledger.names(run=result.id) == ["first"]
        assert pool.tables.outcomes(result.id) == ["retry", "succeeded"]
        assert pool.tables.run(child)["parent"] == result.id
        loops.add((pid, loop))
    assert len(loops) == len({pid for pid, _ in loops})  # one for each process, run after run


def test_a_body_may_ask_for_its_retry(pool: World) -> None:
    assert pool.send("asks_for_a_retry").get(timeout=20) == 1


def test_a_body_that_sleeps_leaves_with_its_step_in_flight_stored(pool: World) -> None:
    result = pool.send("rests", 0.5)

    assert result.get(timeout=20) == "beside done"
    assert pool.ledger.names(run=result.id) == ["beside"]
    assert pool.tables.outcomes(result.id) == ["suspended", "succeeded"]
    assert all(worker.alive for worker in pool.workers)


def test_of_a_killed_worker_what_was_finished_is_not_done_again(pool: World) -> None:
    pool.gates.close("b1")
    result = pool.send("concurrent", ["a", "b"])
    pool.ledger.wait_for("start", "b1", result.id)
    pool.ledger.wait_for("end", "a2", result.id)
    pool.tables.wait_for_step(result.id, "[1]/work_later#2")

    pool.owner(result.id).kill9()
    pool.ledger.wait_for("start", "b1", result.id, times=2)
    pool.gates.open("b1")

    assert result.get(timeout=20) == ["a2 done", "b2 done", "last done"]
    assert sorted(pool.ledger.names(run=result.id)) == ["a1", "a2", "b1", "b1", "b2", "last"]
    assert pool.tables.outcomes(result.id) == ["lost", "succeeded"]


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_branches_wait_one_after_the_other_and_lose_nothing_when_their_worker_is_killed(
    new_world: Callable[..., Any], kind: str
) -> None:
    names = ["a", "b", "c"]
    with new_world(durable_step_sleep=0.1) as world:
        world.pair(pool=kind, concurrency=4 if kind == "threads" else 2)
        for gate in ("b1", "c2"):
            world.gates.close(gate)
        result = world.send("branching", names, 0.3)
        for gate in ("b1", "c2"):
            world.ledger.wait_for("start", gate, result.id, timeout=20)
            if gate == "c2":
                world.owner(result.id).kill9()
                world.ledger.wait_for("start", gate, result.id, times=2, timeout=20)
            world.gates.open(gate)

        done = result.get(timeout=30)
        assert [(first, second) for first, _, second in done] == [(f"{n}1 done", f"{n}2 done") for n in names]
        steps = world.ledger.names(run=result.id)
        assert sorted(set(steps)) == ["a1", "a2", "b1", "b2", "c1", "c2"]
        assert [steps.count(f"{name}1") for name in names] == [1, 1, 1]
        assert steps.count("c2") == 2
        outcomes = set(world.tables.outcomes(result.id))
        assert (
            {"suspended", "lost", "succeeded"} <= outcomes <= {"suspended", "released", "lost", "succeeded"}
        )


def test_a_soft_time_limit_cancels_the_body(new_world: Callable[..., Any]) -> None:
    with new_world() as world:
        world.worker()
        result = world.app.tasks["stuck"].apply_async(soft_time_limit=1, max_retries=0)

        world.ledger.wait_for("cleaned up", "stuck", timeout=20)
        world.tables.wait_for_state(result.id, "waiting", "failed", "pending")
        assert "SoftTimeLimitExceeded" in world.tables.attempts(result.id)[0]["error"]
        assert world.send("concurrent", ["a"]).get(timeout=20) == ["a2 done", "last done"]


def test_gevent_is_refused_with_what_to_do_instead(new_world: Callable[..., Any]) -> None:
    pytest.importorskip("gevent")
    with new_world(durable_autoretry=False) as world:
        worker = world.worker(pool="gevent")
        result = world.app.tasks["rests"].apply_async((1,))

        worker.wait_for_log("--pool prefork, threads or solo")
        assert worker.alive
        assert result.id
