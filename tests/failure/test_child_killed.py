"""A pool child dies; its worker lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import signature

from celery_durable.exceptions import ExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from harness.world import World


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Iterator[World]:
    """A worker with one child, for all tests of this module: each one has to leave it healthy."""
    with new_world(durable_max_recoveries=1) as world:
        world.worker()
        yield world


def test_a_child_killed_in_a_step_is_replaced_and_no_finished_step_runs_again(shared: World) -> None:
    shared.gates.close("mid")
    result = shared.send("flow", ["one", "two", "mid", "four"])
    started = shared.ledger.wait_for("start", "mid", result.id)

    shared.workers[0].kill_child(started.pid)
    again = shared.ledger.wait_for("start", "mid", result.id, times=2)
    shared.gates.open("mid")

    assert result.get(timeout=20) == ["one done", "two done", "mid done", "four done"]
    assert again.pid != started.pid
    assert shared.ledger.names(run=result.id) == ["one", "two", "mid", "mid", "four"]
    assert shared.tables.run(result.id)["recoveries"] == 1
    assert shared.tables.outcomes(result.id) == ["lost", "succeeded"]


def test_a_child_killed_by_the_hard_time_limit_is_replaced_and_no_finished_step_runs_again(
    shared: World,
) -> None:
    shared.gates.close("stuck")
    result = shared.send("flow", ["first", "stuck"], time_limit=1)
    shared.ledger.wait_for("start", "stuck", result.id, times=2)
    shared.gates.open("stuck")

    assert result.get(timeout=20) == ["first done", "stuck done"]
    assert shared.ledger.names(run=result.id) == ["first", "stuck", "stuck"]
    assert shared.tables.run(result.id)["recoveries"] == 1
    assert "TimeLimitExceeded" in shared.tables.attempts(result.id)[0]["error"]


def test_a_run_that_kills_its_child_every_time_fails_as_exhausted_and_its_errback_hears_of_it(
    shared: World,
) -> None:
    errback = signature("on_error", app=shared.app)
    result = shared.send("poison", link_error=errback)

    with pytest.raises(ExhaustedError):
        result.get(timeout=30)

    assert result.state == "FAILURE"
    run = shared.tables.run(result.id)
    assert (run["state"], run["reason"], run["recoveries"]) == ("failed", "exhausted", 2)
    assert shared.ledger.names(run=result.id) == ["before", "poison", "poison"]
    assert shared.ledger.wait_for("errback", result.id, timeout=5).detail == "ExhaustedError"
    assert shared.send("flow", ["healthy"]).get(timeout=10) == ["healthy done"]


def test_a_run_that_ends_its_child_every_time_and_says_nothing_is_told_by_the_name_of_what_it_raised(
    shared: World,
) -> None:
    result = shared.send("interrupted")

    with pytest.raises(ExhaustedError, match=r"the last time: KeyboardInterrupt\. Once the cause"):
        result.get(timeout=30)
    assert [one["error"] for one in shared.tables.attempts(result.id)] == ["KeyboardInterrupt"] * 2
