"""Postgres goes away and comes back: nothing committed is lost, and no run pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness import invariants
from harness.proxy import proxied
from harness.waiting import eventually, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.postgres import PrivatePostgres
    from harness.workers import Worker
    from harness.world import World

STEPS = ["one", "two", "three"]
RUNS = 100


@pytest.fixture
def own_server(new_world: Callable[..., Any], private_postgres: PrivatePostgres) -> Iterator[World]:
    with new_world(postgres_url=private_postgres.url) as world:
        yield world


def under_load(world: World) -> list[str]:
    """Two workers are in the middle of many runs."""
    world.pair(concurrency=2)
    ids = [world.send("flow", STEPS, 0.02).id for _ in range(RUNS)]
    world.ledger.wait_for("end", "three", times=RUNS // 10)
    return ids


def nobody_paid(world: World, ids: list[str]) -> None:
    """Every run has succeeded in its first attempt, every step ran once."""
    world.tables.wait_until_all_final(ids, timeout=60)
    assert world.tables.one("select count(*) from durable.run where state = 'succeeded'") == len(ids)
    assert world.tables.one("select max(recoveries) from durable.run") == 0
    assert world.tables.one("select max(attempt) from durable.run") == 1
    assert world.ledger.count("start") == len(ids) * len(STEPS)
    invariants.check_all(world.app, world.tables, world.ledger, ids)


def wait_for_beats(world: World, worker: Worker, times: int) -> None:
    """Return after this many heartbeats of a worker, or at its death."""
    before = world.tables.beat(worker.name)
    eventually(
        lambda: not 0 <= world.tables.beat(worker.name) < before + times, what=f"{worker.name} to be alive"
    )


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
def test_postgres_restarted_under_load_costs_no_run_a_step_or_a_recovery(
    own_server: World, private_postgres: PrivatePostgres, *, crash: bool
) -> None:
    ids = under_load(own_server)

    private_postgres.restart(crash=crash)
    later = own_server.ledger.count("end", "three") + RUNS // 4
    own_server.ledger.wait_for("end", "three", times=min(later, RUNS), timeout=60)
    private_postgres.restart(crash=crash)

    nobody_paid(own_server, ids)


def test_postgres_away_longer_than_a_lease_leaves_every_run_with_its_worker(
    new_world: Callable[..., Any], private_postgres: PrivatePostgres
) -> None:
    lease = 3.0
    with (
        new_world(postgres_url=private_postgres.url, durable_lease=lease) as world,
        proxied(world.tables.url) as detour,
    ):
        leader, late = world.worker(), world.worker(backend="durable+" + detour.url)
        world.gates.close("mid")
        ids = [world.send("flow", ["mid", "last"]).id for _ in range(2)]
        for run_id in ids:
            world.ledger.wait_for("start", "mid", run_id)
        assert {world.owner(run_id) for run_id in ids} == {leader, late}

        detour.refuse()
        wait_for_beats(world, leader, 1)  # it has seen the other one's last heartbeat
        private_postgres.stop(crash=True)
        take(1.3 * lease)  # this is the fault: a lease goes by without Postgres
        private_postgres.start()
        wait_for_beats(world, leader, 2)  # it has seen that a heartbeat stands still since before the outage
        detour.heal()
        wait_for_beats(world, late, 1)
        world.gates.open("mid")

        world.tables.wait_until_all_final(ids)
        for run_id in ids:
            assert world.tables.outcomes(run_id) == ["succeeded"]
            assert world.ledger.names(run=run_id) == ["mid", "last"]


def test_connections_killed_for_seconds_under_load_cost_no_run_a_step_or_a_recovery(world: World) -> None:
    ids = under_load(world)
    killed = 0

    def kill_all() -> bool:
        nonlocal killed
        killed += world.tables.one(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and application_name = 'celery-durable'"
        )
        if world.tables.one("select count(*) from durable.run where finished_at is null") == 0:
            ids.extend(world.send("flow", STEPS, 0.02).id for _ in range(RUNS))
        return killed >= 100

    eventually(kill_all, timeout=60, what="many connections to be killed")

    nobody_paid(world, ids)
