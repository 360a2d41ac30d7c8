"""Parents and children whose workers die at the worst moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually

from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis
    from harness.world import World


def children_of(world: World, run_id: str) -> list[dict[str, Any]]:
    sql = "select * from durable.run where wait is not null and parent = %s order by key"
    return world.tables.rows(sql, run_id)


def test_a_parent_survives_the_death_of_its_worker_and_its_children_are_started_once(world: World) -> None:
    first = world.worker(concurrency=1)
    world.gates.close("child")
    result = world.send("parent", 3)
    world.tables.wait_for_state(result.id, "waiting")
    world.ledger.wait_for("start", "child")
    first.kill9()
    world.gates.open("child")
    world.worker(concurrency=2)

    assert result.get(timeout=40) == ["before done", ["child 0", "child 1", "child 2"], "after done"]
    assert world.ledger.names(run=result.id) == ["before", "after"]
    assert len(children_of(world, result.id)) == 3


def test_a_worker_killed_between_the_end_of_the_last_child_and_the_look_at_its_parent(world: World) -> None:
    """The end of the child has committed; the parent is locked, so that nobody can wake it."""
    worker = world.worker(concurrency=1)
    world.gates.close("child")
    result = world.send("parent", 1)
    world.ledger.wait_for("start", "child")
    (child,) = children_of(world, result.id)
    with world.tables.locked(result.id):
        world.gates.open("child")
        world.tables.wait_for_state(child["id"], "succeeded")
        assert world.tables.state(result.id) == "waiting"
        worker.kill9()
        world.tables.end_the_blocked()
    world.worker(concurrency=1)

    assert result.get(timeout=40) == ["before done", ["child 0"], "after done"]


def test_a_child_that_keeps_killing_its_worker_fails_its_parent_with_the_reason(
    new_world: Callable[..., Any],
) -> None:
    with new_world(durable_max_recoveries=1) as world:
        world.worker(concurrency=1)
        result = world.send("parent_of_poison")

        assert result.get(timeout=60) == "ExhaustedError"


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_many_children_end_at_once_and_their_parent_goes_on_once(world: World, pool: str) -> None:
    world.worker(pool=pool, concurrency=8)
    results = [world.send("parent", 8) for _ in range(4)]

    for result in results:
        assert result.get(timeout=60)[1] == [f"child {number}" for number in range(8)]
        assert world.ledger.names(run=result.id) == ["before", "after"]
        assert world.tables.outcomes(result.id) == ["suspended", "succeeded"]


def test_a_broker_that_loses_the_messages_of_children_loses_no_child(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url) as world:
        worker = world.worker(concurrency=1)
        world.gates.close("before")
        result = world.send("parent", 5)
        world.ledger.wait_for("start", "before")
        world.gates.open("before")
        world.tables.wait_for_state(result.id, "waiting")
        worker.kill9()
        private_redis.kill()
        private_redis.start()
        world.worker(concurrency=2)

        assert result.get(timeout=60)[1] == [f"child {number}" for number in range(5)]


@pytest.mark.parametrize("child", ["plain_child", "plain_replaced"])
def test_a_plain_task_whose_worker_is_killed_is_executed_again_for_its_parent(
    world: World, child: str
) -> None:
    """Also one that has taken the place of another one."""
    first = world.worker(concurrency=1)
    world.gates.close("plain child")
    result = world.send("parent_of_plain", child)
    world.ledger.wait_for("body", "plain child")
    first.kill9()
    world.gates.open("plain child")
    world.worker(concurrency=1)

    assert result.get(timeout=40) == "plain result"


def test_a_parent_that_is_resumed_resumes_its_failed_child_once_whoever_is_killed_meanwhile(
    world: World,
) -> None:
    """Killed before it waits again, and once more when the child has begun to go on."""
    first = world.worker(concurrency=1)
    world.gates.close("mended")
    result = world.send("parent_of_fragile", 3)
    world.tables.wait_for_state(result.id, "failed")
    world.gates.open("mended")
    times = world.ledger.count("body", "parent", result.id)
    world.gates.close("wait")
    Runs(world.app).resume(result.id)
    world.ledger.wait_for("body", "parent", result.id, times=times + 1)
    first.kill9()
    assert [child["state"] for child in children_of(world, result.id)] == ["succeeded", "failed", "succeeded"]
    world.gates.open("wait")
    world.gates.close("again")
    second = world.worker(concurrency=1)
    world.ledger.wait_for("start", "again", timeout=40)
    second.kill9()
    world.gates.open("again")
    world.worker(concurrency=2)

    assert result.get(timeout=60) == ["child 0", "child 1", "child 2"]
    assert [child["generation"] for child in children_of(world, result.id)] == [0, 1, 0]
    assert world.ledger.count("start", "child") == 3, "no finished step of a child was repeated"


@pytest.mark.parametrize(
    ("task", "args", "executed"),
    [
        ("parent", (2,), ("start", "child", 2)),
        ("parent_of_plain", (), ("body", "plain child", 1)),
        ("parent_of_canvas", ("group",), ("start", "mid", 2)),
    ],
)
def test_terminate_interrupts_what_the_children_execute(
    world: World, task: str, args: tuple[Any, ...], executed: tuple[str, str, int]
) -> None:
    """Their steps would hang for ever: the gate stays closed."""
    kind, name, times = executed
    world.worker(concurrency=2)
    world.gates.close(name)
    result = world.send(task, *args)
    world.ledger.wait_for(kind, name, times=times, timeout=40)

    Runs(world.app).cancel(result.id, terminate=True)

    eventually(lambda: not world.tables.rows("select id from durable.run where finished_at is null"))
    ended = world.tables.rows(
        "select id, state, reason from durable.run where state = 'cancelled' order by key"
    )
    assert (ended[0]["id"], ended[0]["reason"]) == (result.id, "cancelled")
    assert {one["reason"] for one in ended[1:]} == {"parent"}
    assert len(ended) >= 1 + times


@pytest.mark.parametrize("kind", ["chain", "group"])
def test_the_members_of_a_canvas_are_cancelled_with_their_parent(world: World, kind: str) -> None:
    """Also the second link of a chain, which its first one has sent."""
    members = 1 if kind == "chain" else 2
    world.worker(concurrency=2)
    world.gates.close("mid")
    result = world.send("parent_of_canvas", kind)
    world.ledger.wait_for("start", "mid", times=members, timeout=40)

    Runs(world.app).cancel(result.id)
    asked = "select id from durable.run where state = 'running' and cancel_requested"
    eventually(lambda: len(world.tables.rows(asked)) == members)
    world.gates.open("mid")

    eventually(lambda: not world.tables.rows("select id from durable.run where finished_at is null"))
    assert world.ledger.count("start", "never") == 0
    eventually(lambda: not world.tables.rows("select id from durable.run where cascading"))
