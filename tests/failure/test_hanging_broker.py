"""The broker neither answers nor refuses: it hangs, and with it everybody who talks to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis

BEATS_OF_A_LEASE = 3


def test_nobody_loses_a_lease_while_redis_hangs_and_the_timers_fire_when_it_goes_on(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url, durable_lease=1.5) as world:
        first, second = world.pair()
        timers = [world.send("plain", str(number), countdown=1.5) for number in range(3)]
        world.gates.close("mid")
        busy = [world.send("flow", ["mid", "last"]) for _ in range(2)]
        for run in busy:
            world.ledger.wait_for("start", "mid", run.id)
        alive = {worker: world.tables.beat(worker.name) for worker in (first, second)}
        assert {world.tables.state(timer.id) for timer in timers} == {"waiting"}

        private_redis.freeze()
        # Somebody has taken the timers and stands before the broker.
        eventually(
            lambda: {world.tables.state(timer.id) for timer in timers} == {"pending"}, what="timers to be due"
        )
        due = {worker: world.tables.beat(worker.name) for worker in alive}
        for worker, beat in due.items():
            eventually(
                lambda worker=worker, beat=beat: world.tables.beat(worker.name) > beat + 2 * BEATS_OF_A_LEASE,
                timeout=10,
                what=f"two leases of {worker.name}, which began at {alive[worker]}",
            )
        world.gates.open("mid")
        private_redis.thaw()

        for run in busy:
            assert run.get(timeout=20) == ["mid done", "last done"]
            assert world.tables.outcomes(run.id) == ["succeeded"]
            assert world.ledger.names(run=run.id) == ["mid", "last"]
        for timer in timers:
            world.tables.wait_for_state(timer.id, "succeeded")
        assert world.ledger.count("body", "plain") == len(timers)
        assert world.tables.one("select max(recoveries) from durable.run") == 0
        assert not any("was declared dead" in worker.output for worker in (first, second))
