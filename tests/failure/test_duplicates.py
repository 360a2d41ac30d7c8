"""A run's message arrives more than once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

COPIES = 4


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Iterator[World]:
    """Two workers of two children each: a copy finds a free child while the run is at work."""
    with new_world() as world:
        world.pair(concurrency=2)
        yield world


def refusals(world: World, run_id: str) -> int:
    """Count the copies that found nothing to do."""
    return sum(worker.output.count(f"[{run_id}]: nothing to do") for worker in world.workers)


def test_copies_that_arrive_while_the_run_is_at_work_change_nothing(shared: World) -> None:
    shared.gates.close("mid")
    result = shared.send("flow", ["mid", "last"])
    shared.ledger.wait_for("start", "mid", result.id)

    shared.publish_again(result.id, COPIES)
    eventually(lambda: refusals(shared, result.id) == COPIES, what="the copies to be refused")
    shared.gates.open("mid")

    assert result.get(timeout=10) == ["mid done", "last done"]
    assert shared.ledger.names(run=result.id) == ["mid", "last"]
    assert shared.tables.outcomes(result.id) == ["succeeded"]


def test_copies_that_arrive_after_the_end_change_nothing(shared: World) -> None:
    result = shared.send("flow", ["one"])
    assert result.get(timeout=10) == ["one done"]
    before = shared.tables.run(result.id)

    shared.publish_again(result.id, COPIES)
    eventually(lambda: refusals(shared, result.id) == COPIES, what="the copies to be refused")

    assert shared.ledger.names(run=result.id) == ["one"]
    assert shared.tables.run(result.id) == before


def test_copies_that_arrive_while_the_run_waits_for_its_retry_do_not_start_it_early(shared: World) -> None:
    result = shared.send("patient", 1.5)
    shared.tables.wait_for_state(result.id, "waiting")

    shared.publish_again(result.id, COPIES)
    eventually(lambda: refusals(shared, result.id) == COPIES, what="the copies to be refused")
    assert result.state == "RETRY"

    assert result.get(timeout=10) == ["first done", "second done"]
    assert shared.ledger.names(run=result.id) == ["first", "second"]
    first, second = shared.tables.attempts(result.id)
    assert (second["started_at"] - first["ended_at"]).total_seconds() >= 1.5


def test_copies_delivered_to_four_processes_at_once_are_one_execution(shared: World) -> None:
    results = [shared.send("flow", ["race"], countdown=0.2) for _ in range(15)]
    for result in results:
        shared.tables.wait_for_state(result.id, "pending", "running", "succeeded")
        shared.publish_again(result.id, COPIES)

    for result in results:
        assert result.get(timeout=20) == ["race done"]
    eventually(
        lambda: sum(refusals(shared, r.id) for r in results) == COPIES * len(results), what="all refusals"
    )
    for result in results:
        assert shared.ledger.names(run=result.id) == ["race"]
        assert shared.tables.outcomes(result.id) == ["succeeded"]
