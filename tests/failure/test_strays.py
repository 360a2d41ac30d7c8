"""A worker gives a run up and cannot say so, because Postgres is away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_run_that_its_worker_gave_up_during_an_outage_is_released_when_postgres_is_back(
    new_world: Callable[..., Any],
) -> None:
    with new_world(proxy=True, durable_outage_budget=0.3) as world:
        worker = world.worker()
        world.gates.close("mid")
        result = world.send("flow", ["first", "mid", "last"])
        world.ledger.wait_for("start", "mid", result.id)

        world.proxy.refuse()
        world.gates.open("mid")
        worker.wait_for_log("the run is handed on")
        world.proxy.heal()

        assert result.get(timeout=20) == ["first done", "mid done", "last done"]
        assert world.ledger.names(run=result.id) == ["first", "mid", "mid", "last"]
        assert world.tables.outcomes(result.id) == ["released", "succeeded"]
        assert world.tables.run(result.id)["recoveries"] == 0


def test_a_worker_cut_off_without_a_word_loses_its_run_and_stores_nothing_when_it_is_back(
    new_world: Callable[..., Any],
) -> None:
    with new_world(proxy=True) as world:
        worker = world.worker()
        world.gates.close("mid")
        result = world.send("flow", ["first", "mid", "last"])
        world.ledger.wait_for("start", "mid", result.id)
        survivor = world.worker(backend="durable+" + world.tables.url)

        world.proxy.blackhole()
        world.ledger.wait_for("start", "mid", result.id, times=2)
        world.gates.open("mid")
        world.tables.wait_for_state(result.id, "succeeded")
        world.proxy.heal()
        worker.wait_for_log("attempt 1 lost its lease; nothing of it is stored")

        assert world.tables.outcomes(result.id) == ["lost", "succeeded"]
        assert world.tables.attempts(result.id)[1]["hostname"] == survivor.name
        assert world.ledger.names(run=result.id) == ["first", "mid", "mid", "last"]
