"""Runs that take back what they have done, and workers that die meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import signature

from celery_durable.exceptions import ExhaustedError, Fatal
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Iterator[World]:
    """Two workers, for all tests of this module."""
    with new_world(durable_max_recoveries=1) as world:
        world.pair()
        yield world


def test_a_child_killed_in_a_compensation_is_replaced_and_what_was_taken_back_stays_so(shared: World) -> None:
    shared.gates.close("undo a")
    errback = signature("on_error", app=shared.app)
    result = shared.send("journey", ["a", "b", "fails"], link_error=errback)
    started = shared.ledger.wait_for("start", "undo a", result.id)
    assert shared.tables.state(result.id) == "cancelling"
    assert result.state == "STARTED"

    shared.owner(result.id).kill_child(started.pid)
    shared.ledger.wait_for("start", "undo a", result.id, times=2)
    shared.gates.open("undo a")

    with pytest.raises(Fatal, match="no way on"):
        result.get(timeout=20)
    assert shared.ledger.names(run=result.id) == ["a", "b", "undo b", "undo a", "undo a"]
    assert shared.tables.outcomes(result.id) == ["lost", "failed"]
    assert shared.ledger.wait_for("errback", result.id, timeout=10).detail == "Fatal"
    assert shared.ledger.count("errback", result.id) == 1


def test_a_sleeping_run_that_is_cancelled_is_taken_back_by_a_worker(shared: World) -> None:
    result = shared.send("journey", ["a", "b", "sleeps", "c"], 3600)
    shared.tables.wait_for_state(result.id, "waiting")

    Runs(shared.app).cancel(result.id)
    shared.tables.wait_for_state(result.id, "cancelled")

    assert shared.ledger.names(run=result.id) == ["a", "b", "undo b", "undo a"]
    assert result.state == "REVOKED"


def test_a_run_that_kills_its_child_every_time_is_taken_back_and_fails_as_exhausted(shared: World) -> None:
    shared.gates.close("mid")
    result = shared.send("journey", ["a", "mid", "c"])
    for times in (1, 2):
        started = shared.ledger.wait_for("start", "mid", result.id, times=times)
        shared.owner(result.id).kill_child(started.pid)

    with pytest.raises(ExhaustedError):
        result.get(timeout=30)
    shared.gates.open("mid")
    assert shared.ledger.names(run=result.id) == ["a", "mid", "mid", "undo a"]
    run = shared.tables.run(result.id)
    assert (run["state"], run["reason"]) == ("failed", "exhausted")


def test_the_worker_of_a_run_that_takes_back_is_killed_and_another_one_goes_on(
    new_world: Callable[..., Any],
) -> None:
    with new_world() as world:
        world.pair()
        world.gates.close("undo a")
        result = world.send("journey", ["a", "b", "fails"])
        world.ledger.wait_for("start", "undo a", result.id)

        world.owner(result.id).kill9()
        world.ledger.wait_for("start", "undo a", result.id, times=2)
        world.gates.open("undo a")

        with pytest.raises(Fatal):
            result.get(timeout=20)
        assert world.ledger.names(run=result.id) == ["a", "b", "undo b", "undo a", "undo a"]
