"""Waiting for a retry is a row in Postgres: no message, no worker, no memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis


def test_a_run_waiting_for_its_retry_leaves_nothing_in_the_broker_and_outlives_its_worker(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url) as world:
        first = world.worker()
        result = world.send("patient", 3.0)
        world.tables.wait_for_state(result.id, "waiting")
        first.wait_for_log("Task patient")

        assert result.state == "RETRY"
        private_redis.wait_until_empty(world.setup.queue)
        first.kill9()
        assert world.tables.state(result.id) == "waiting"
        world.worker()

        assert result.get(timeout=20) == ["first done", "second done"]
        assert world.ledger.names(run=result.id) == ["first", "second"]
        failed, succeeded = world.tables.attempts(result.id)
        assert (succeeded["started_at"] - failed["ended_at"]).total_seconds() >= 3.0
        assert world.tables.outcomes(result.id) == ["retry", "succeeded"]
        assert world.tables.run(result.id)["recoveries"] == 0


def test_a_countdown_is_a_row_and_not_a_message(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url) as world:
        world.worker()
        result = world.send("flow", ["late"], countdown=2.0)
        assert private_redis.messages(world.setup.queue) == (0, 0)

        assert result.get(timeout=20) == ["late done"]
        run = world.tables.run(result.id)
        assert 2.0 <= (run["started_at"] - run["created_at"]).total_seconds() < 4.0
