"""Runs that sleep or wait for a signal while everything around them dies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually

import celery_durable as durable
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis
    from harness.world import World


def test_a_sleeping_run_leaves_nothing_in_the_broker_and_outlives_its_worker(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url) as world:
        first = world.worker()
        result = world.send("napping", 3.0)
        world.tables.wait_for_state(result.id, "waiting")

        assert result.state == "SUSPENDED"
        assert world.send("flow", ["meanwhile"]).get(timeout=20) == ["meanwhile done"], "its worker is free"
        private_redis.wait_until_empty(world.setup.queue)
        first.kill9()
        world.worker()

        assert result.get(timeout=20) == ["first done", "second done"]
        assert world.ledger.names(run=result.id) == ["first", "second"]
        slept, woken = world.tables.attempts(result.id)
        assert (woken["started_at"] - slept["started_at"]).total_seconds() >= 3.0
        assert world.tables.outcomes(result.id) == ["suspended", "succeeded"]
        assert world.tables.run(result.id)["recoveries"] == 0


def test_a_timer_of_its_own_fires_within_a_second(world: World) -> None:
    world.worker()
    world.send("flow", ["warm"]).get(timeout=20)
    result = world.send("napping", 2.5)

    assert result.get(timeout=20) == ["first done", "second done"]
    slept, woken = world.tables.attempts(result.id)
    assert 2.5 <= (woken["started_at"] - slept["started_at"]).total_seconds() < 3.5


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_run_that_waits_for_a_signal_is_no_ones_until_it_comes(world: World, pool: str) -> None:
    first = world.worker(pool=pool)
    result = world.send("approval")
    world.tables.wait_for_state(result.id, "waiting")
    assert result.state == "SUSPENDED"
    assert world.send("flow", ["meanwhile"]).get(timeout=20) == ["meanwhile done"]
    first.kill9()

    durable.send_signal(result.id, "approved", {"by": "ada"}, app=world.app)
    world.worker(pool=pool)

    assert result.get(timeout=20) == ["first done", {"by": "ada"}, "second done"]
    assert world.ledger.names(run=result.id) == ["first", "second"]
    assert world.tables.outcomes(result.id) == ["suspended", "succeeded"]


def test_a_signal_sent_while_the_broker_is_away_is_not_lost(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url) as world:
        world.worker()
        result = world.send("approval")
        world.tables.wait_for_state(result.id, "waiting")
        private_redis.kill()

        durable.send_signal(result.id, "approved", 1, app=world.app)
        private_redis.start()

        assert result.get(timeout=40) == ["first done", 1, "second done"]


def test_a_worker_killed_when_it_has_just_received_a_signal_has_received_it(world: World) -> None:
    """The payload is stored with the wait, and the signal is not in the queue any more."""
    first, _ = world.pair()
    result = world.send("approval")
    world.tables.wait_for_state(result.id, "waiting")
    world.gates.close("second")
    durable.send_signal(result.id, "approved", "only once", app=world.app)
    world.ledger.wait_for("start", "second", run=result.id)
    world.owner(result.id).kill9()
    world.gates.open("second")

    assert result.get(timeout=30) == ["first done", "only once", "second done"]
    assert first is not None


def test_a_frozen_worker_cannot_put_its_run_to_sleep_again_when_it_comes_back(world: World) -> None:
    world.gates.close("first")
    frozen, other = world.pair()
    result = world.send("napping", 60.0)
    world.ledger.wait_for("start", "first", run=result.id)
    owner = world.owner(result.id)
    owner.freeze()
    world.gates.open("first")
    world.tables.wait_for_state(result.id, "waiting")
    due = world.tables.run(result.id)["due"]
    owner.thaw()
    owner.wait_for_log("lost its lease")

    assert world.tables.run(result.id)["due"] == due
    assert world.tables.state(result.id) == "waiting"
    assert {frozen.alive, other.alive} == {True}


def test_a_revoke_of_a_sleeping_run_ends_it_and_outlives_the_worker_that_heard_it(world: World) -> None:
    worker = world.worker()
    result = world.send("napping", 4.0)
    world.tables.wait_for_state(result.id, "waiting")

    world.app.control.revoke(result.id)
    world.tables.wait_for_state(result.id, "cancelled")
    worker.kill9()
    world.worker()

    assert world.tables.run(result.id)["reason"] == "revoked"
    assert world.send("flow", ["meanwhile"]).get(timeout=20) == ["meanwhile done"]
    assert world.ledger.names(run=result.id) == ["first"]


def test_a_revoke_of_a_run_that_is_executed_stops_it_at_its_next_step(world: World) -> None:
    world.worker()
    world.gates.close("first")
    result = world.send("napping", 60.0)
    world.ledger.wait_for("start", "first", run=result.id)

    world.app.control.revoke(result.id)
    eventually(lambda: world.tables.run(result.id)["cancel_requested"], what="the revoke to be written down")
    world.gates.open("first")

    world.tables.wait_for_state(result.id, "cancelled")
    assert world.ledger.names(run=result.id) == ["first"]


def test_a_step_that_hangs_is_interrupted_if_asked_and_the_run_can_be_resumed_on_the_same_worker(
    world: World,
) -> None:
    world.worker()
    world.gates.close("hanging")
    result = world.send("flow", ["hanging", "after"])
    world.ledger.wait_for("start", "hanging", run=result.id)

    Runs(world.app).cancel(result.id, terminate=True)
    world.tables.wait_for_state(result.id, "cancelled")
    assert world.tables.run(result.id)["reason"] == "cancelled"
    world.gates.open("hanging")
    Runs(world.app).resume(result.id)

    eventually(
        lambda: world.tables.state(result.id) == "succeeded", timeout=40, what="the resumed run to succeed"
    )
    assert world.ledger.names(run=result.id) == ["hanging", "hanging", "after"]


@pytest.mark.parametrize("how", ["blocks", "swallows"])
def test_an_async_body_that_hears_of_no_cancel_ends_with_its_process_if_asked(world: World, how: str) -> None:
    world.worker(concurrency=1)
    result = world.send("deaf", how)
    (began,) = [world.ledger.wait_for("deaf", how, run=result.id)]

    Runs(world.app).cancel(result.id, terminate=True)

    world.tables.wait_for_state(result.id, "cancelled")
    eventually(lambda: not Path(f"/proc/{began.pid}/status").exists(), what="the child to be gone")
    assert world.send("flow", ["behind"]).get(timeout=20) == ["behind done"]
    assert world.ledger.count("deaf", how, run=result.id) == 1
