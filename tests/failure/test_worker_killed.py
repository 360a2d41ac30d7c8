"""A worker's main process dies, and its children with it; another worker is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chain
from harness import brokers
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World


@pytest.fixture(params=["redis", "rabbitmq", "postgres"])
def on_each_broker(request: pytest.FixtureRequest, new_world: Callable[..., Any]) -> Iterator[World]:
    variable = {"redis": "DURABLE_TEST_REDIS", "rabbitmq": "DURABLE_TEST_AMQP"}.get(request.param)
    with new_world(broker=brokers.service(variable) if variable else brokers.SAME_POSTGRES) as world:
        yield world


def kill_one_of_two(world: World, *, leader: bool) -> None:
    """Two runs are in their second step, one on each worker; then the keepers' leader dies, or the other."""
    world.gates.close("mid")
    results = [world.send("flow", ["first", "mid", "last"]) for _ in range(2)]
    for result in results:
        world.ledger.wait_for("start", "mid", result.id)
    name = eventually(world.tables.leader)
    victim = next(worker for worker in world.workers if (worker.name == name) is leader)
    (lost,) = (result for result in results if world.owner(result.id) is victim)
    (other,) = (result for result in results if result is not lost)

    victim.kill9()
    world.gates.open("mid")

    for result in results:
        assert result.get(timeout=20) == ["first done", "mid done", "last done"]
    assert world.ledger.names(run=lost.id) == ["first", "mid", "mid", "last"]
    assert world.ledger.names(run=other.id) == ["first", "mid", "last"]
    assert world.tables.outcomes(lost.id) == ["lost", "succeeded"]
    assert world.tables.outcomes(other.id) == ["succeeded"]
    assert [world.tables.run(result.id)["recoveries"] for result in (lost, other)] == [1, 0]


def test_the_leader_killed_in_a_step_loses_its_run_to_the_other_worker(on_each_broker: World) -> None:
    on_each_broker.pair()

    kill_one_of_two(on_each_broker, leader=True)


def test_a_worker_killed_in_a_step_loses_its_run_to_the_leader(world: World) -> None:
    world.pair()

    kill_one_of_two(world, leader=False)


def test_a_run_whose_only_worker_was_killed_waits_for_the_next_worker(world: World) -> None:
    world.gates.close("mid")
    result = world.send("flow", ["first", "mid"])
    first = world.worker()
    world.ledger.wait_for("start", "mid", result.id)

    first.kill9()
    world.gates.open("mid")
    world.worker()

    assert result.get(timeout=20) == ["first done", "mid done"]
    assert world.ledger.names(run=result.id) == ["first", "mid", "mid"]


def test_a_worker_killed_in_the_middle_of_a_long_chain_leaves_every_link_to_be_executed_once(
    world: World,
) -> None:
    plain, flow = (world.app.tasks[name] for name in ("plain", "flow"))
    world.pair()
    world.gates.close("mid")
    before, after = ([plain.si(f"{when} {n}") for n in range(15)] for when in ("before", "after"))
    result = chain(*before, flow.si(["mid"]), *after).apply_async()
    run = world.ledger.wait_for("start", "mid").run

    world.owner(run).kill9()
    world.gates.open("mid")

    assert result.get(timeout=60) == "after 14"
    assert world.ledger.names(run=run) == ["mid", "mid"]
    assert world.ledger.count("body", "plain") == 30
    assert world.tables.one("select count(*) from durable.run") == 31
    assert world.tables.one("select count(*) from durable.chain_link") == 30
