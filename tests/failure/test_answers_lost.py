"""Postgres commits, and the connection dies before the answer is delivered; or the request never arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.proxy import Fault, met

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Iterator[World]:
    """A worker and a caller whose connections to Postgres go through a proxy."""
    with new_world(proxy=True) as world:
        world.worker()
        yield world


def lose(world: World, statement: str, what: str) -> Fault:
    """Lose the next such statement, or its answer."""
    return (world.proxy.lose_answer if what == "answer" else world.proxy.lose_request)("runs", statement)


@pytest.mark.parametrize("what", ["answer", "request"])
@pytest.mark.parametrize("statement", ["enqueue", "claim", "checkpoint", "finish"])
def test_the_statement_is_repeated_and_its_effect_is_not(shared: World, statement: str, what: str) -> None:
    fault = lose(shared, statement, what)

    result = shared.send("flow", ["one", "two"])

    assert result.get(timeout=20) == ["one done", "two done"]
    met(fault)
    shared.workers[0].wait_for_log(f"flow[{result.id}] succeeded")
    assert shared.ledger.names(run=result.id) == ["one", "two"]
    assert shared.tables.outcomes(result.id) == ["succeeded"]
    assert shared.tables.run(result.id)["attempt"] == 1
    assert shared.tables.run(result.id)["recoveries"] == 0
    assert "lost its lease" not in shared.workers[0].output


@pytest.mark.parametrize("what", ["answer", "request"])
def test_the_release_for_a_retry_is_repeated_and_counts_once(shared: World, what: str) -> None:
    fault = lose(shared, "release", what)

    result = shared.send("flaky", 1)

    assert result.get(timeout=20) == ["first done", "second done", 1]
    met(fault)
    shared.workers[0].wait_for_log(f"flaky[{result.id}] succeeded")
    assert shared.ledger.names(run=result.id) == ["first", "second"]
    assert shared.tables.outcomes(result.id) == ["retry", "succeeded"]
    assert shared.tables.run(result.id)["retries"] == 1
    assert "lost its lease" not in shared.workers[0].output


def test_an_answer_lost_three_times_in_a_row_is_asked_for_a_fourth_time(shared: World) -> None:
    fault = shared.proxy.lose_answer("runs", "checkpoint", times=3)

    result = shared.send("flow", ["one"])

    assert result.get(timeout=20) == ["one done"]
    met(fault)
    assert shared.ledger.names(run=result.id) == ["one"]
    assert shared.tables.outcomes(result.id) == ["succeeded"]
