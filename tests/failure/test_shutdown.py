"""Workers are asked to stop: deploys must not cost a run anything."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.world import World


def in_the_middle_of_a_step(world: World) -> str:
    """Two workers; one of them is in the second step of a run."""
    world.pair()
    world.gates.close("mid")
    result = world.send("flow", ["first", "mid", "last"])
    world.ledger.wait_for("start", "mid", result.id)
    return result.id


def test_a_worker_asked_to_stop_hands_its_run_on_at_the_next_step_boundary(world: World) -> None:
    run_id = in_the_middle_of_a_step(world)
    stopping = world.owner(run_id)

    stopping.signal(signal.SIGTERM)
    stopping.wait_for_log("Warm shutdown")
    world.gates.open("mid")
    world.tables.wait_for_state(run_id, "succeeded")

    assert stopping.wait_for_end() == 0
    assert world.ledger.names(run=run_id) == ["first", "mid", "last"]
    assert world.tables.outcomes(run_id) == ["released", "succeeded"]
    assert world.tables.run(run_id)["recoveries"] == 0
    released, resumed = world.tables.attempts(run_id)
    assert (resumed["started_at"] - released["ended_at"]).total_seconds() < 1.5
    assert stopping.name not in world.tables.workers()


def test_an_idle_worker_asked_to_stop_is_gone_quickly_and_takes_its_row_along(world: World) -> None:
    worker = world.worker()
    assert world.tables.workers() == {worker.name}

    began = time.monotonic()
    status = worker.terminate()

    assert status == 0
    # With a broker that has to be polled, Celery itself needs six seconds.
    assert time.monotonic() - began < (10 if world.setup.broker.startswith("durable") else 5)
    assert world.tables.workers() == set()


@pytest.mark.parametrize("warning", [True, False], ids=["after a polite request", "at once"])
def test_a_worker_told_to_drop_everything_hands_its_run_on_in_the_middle_of_the_step(
    world: World, *, warning: bool
) -> None:
    run_id = in_the_middle_of_a_step(world)
    stopping = world.owner(run_id)

    if warning:
        stopping.signal(signal.SIGTERM)
        stopping.wait_for_log("Warm shutdown")
    stopping.signal(signal.SIGQUIT)
    stopping.wait_for_end()
    world.ledger.wait_for("start", "mid", run_id, times=2)
    world.gates.open("mid")
    world.tables.wait_for_state(run_id, "succeeded")

    assert world.ledger.names(run=run_id) == ["first", "mid", "mid", "last"]
    assert world.tables.outcomes(run_id) == ["released", "succeeded"]
    assert world.tables.run(run_id)["recoveries"] == 0
    assert world.tables.attempts(run_id)[1]["hostname"] == world.other(stopping).name
