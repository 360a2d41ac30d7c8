"""A worker stands still past its lease, another finishes its run, and then it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from celery_durable.exceptions import Fatal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.workers import Worker
    from harness.world import World


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Iterator[World]:
    """Two workers for all tests of this module: who was frozen and came back has to be as good as new."""
    with new_world() as world:
        world.pair()
        yield world


def stored(world: World, run_id: str) -> list[list[dict[str, Any]]]:
    """Return every row there is of a run."""
    key = world.tables.run(run_id)["key"]
    of_run = ("checkpoint", "attempt", "event")
    return [
        world.tables.rows(
            "select * from durable.run where id = %s or parent = %s order by key", run_id, run_id
        ),
        *(
            world.tables.rows(f"select * from durable.{table} where run_key = %s order by 1, 2", key)
            for table in of_run
        ),
    ]


def back_and_healthy(world: World, worker: Worker) -> None:
    """Return when the worker that came back has done a run of its own."""
    worker.wait_for_log("was declared dead: it begins anew")
    world.gates.close("hold")
    runs = [world.send("flow", ["hold"]) for _ in range(2)]
    world.ledger.wait_for("start", "hold", runs[0].id)
    world.ledger.wait_for("start", "hold", runs[1].id)
    assert worker in [world.owner(run.id) for run in runs]
    world.gates.open("hold")
    for run in runs:
        assert run.get(timeout=10) == ["hold done"]


def test_a_worker_frozen_in_a_step_stores_nothing_when_it_is_back_and_starts_nothing_more(
    shared: World,
) -> None:
    shared.gates.close("mid")
    result = shared.send("flow", ["first", "mid", "last"], link=shared.app.tasks["on_success"].s())
    zombie = shared.ledger.wait_for("start", "mid", result.id)
    frozen = shared.owner(result.id)

    frozen.freeze()
    shared.ledger.wait_for("start", "mid", result.id, times=2)
    shared.gates.open("mid")
    assert result.get(timeout=20) == ["first done", "mid done", "last done"]
    shared.ledger.wait_for("link")
    children = "select id from durable.run where parent = %s"
    shared.tables.wait_until_all_final(row["id"] for row in shared.tables.rows(children, result.id))
    before = stored(shared, result.id)
    frozen.thaw()
    frozen.wait_for_log(f"flow[{result.id}]: attempt 1 lost its lease; nothing of it is stored")
    back_and_healthy(shared, frozen)

    after_thaw = [(e.event, e.name) for e in shared.ledger.entries(run=result.id) if e.pid == zombie.pid]
    assert after_thaw == [
        ("body", "flow"),
        ("start", "first"),
        ("end", "first"),
        ("start", "mid"),
        ("end", "mid"),
    ]
    assert stored(shared, result.id) == before
    assert shared.ledger.count("link") == 1
    assert shared.tables.outcomes(result.id) == ["lost", "succeeded"]


def test_a_worker_that_is_back_while_another_is_in_the_same_step_cannot_store_it(shared: World) -> None:
    shared.gates.close("mid")
    result = shared.send("flow", ["mid", "last"])
    shared.ledger.wait_for("start", "mid", result.id)
    frozen = shared.owner(result.id)
    (successor,) = shared.other(frozen).children()
    shared.gates.close("mid", successor.pid)

    frozen.freeze()
    shared.ledger.wait_for("start", "mid", result.id, times=2)
    shared.gates.open("mid")
    frozen.thaw()
    frozen.wait_for_log(f"flow[{result.id}]: attempt 1 lost its lease; nothing of it is stored")
    assert shared.tables.steps(result.id) == {}
    shared.gates.open("mid", successor.pid)

    assert result.get(timeout=20) == ["mid done", "last done"]
    assert shared.ledger.names(run=result.id) == ["mid", "mid", "last"]
    assert {step["attempt"] for step in shared.tables.steps(result.id).values()} == {2}
    back_and_healthy(shared, frozen)


@pytest.mark.parametrize("outcome", ["return", "raise"])
def test_a_worker_frozen_at_the_end_of_its_run_cannot_change_the_outcome(shared: World, outcome: str) -> None:
    shared.gates.close("tail")
    result = shared.send("tail", outcome)
    shared.ledger.wait_for("end", "head", result.id)
    zombie = shared.ledger.wait_for("body", "tail", result.id)
    frozen = shared.owner(result.id)

    frozen.freeze()
    winner = shared.ledger.wait_for("body", "tail", result.id, times=2)
    shared.gates.open("tail")
    if outcome == "return":
        assert result.get(timeout=20) == winner.pid != zombie.pid
    else:
        with pytest.raises(Fatal):
            result.get(timeout=20)
    before = stored(shared, result.id)
    frozen.thaw()
    frozen.wait_for_log(f"tail[{result.id}]: attempt 1 lost its lease; nothing of it is stored")
    back_and_healthy(shared, frozen)

    assert stored(shared, result.id) == before
    assert shared.ledger.names("leaving", result.id) == ["tail", "tail"]
