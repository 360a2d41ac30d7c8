"""Workers die with slots in their hands: nobody waits for ever, and never are more executed than may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World


@pytest.fixture
def world(new_world: Callable[..., Any]) -> Iterator[World]:
    with new_world() as made:
        yield made


def most_at_once(world: World, ids: set[str]) -> int:
    """Return how many of these runs were between start and end of a step at one moment."""
    marks = sorted(
        (entry.at, 1 if entry.event == "start" else -1)
        for entry in world.ledger.entries()
        if entry.run in ids and entry.event in ("start", "end")
    )
    most = now = 0
    for _, change in marks:
        now += change
        most = max(most, now)
    return most


def test_runs_of_two_workers_share_a_limit_and_all_of_them_end(world: World) -> None:
    world.pair(concurrency=2)

    results = [
        world.send("flow", ["step"], 0.05, concurrency_key="key", concurrency_limit=2) for _ in range(12)
    ]

    assert [result.get(timeout=30) for result in results] == [["step done"]] * 12
    assert most_at_once(world, {result.id for result in results}) <= 2


def test_a_worker_killed_with_a_slot_frees_it_for_the_next_one(new_world: Callable[..., Any]) -> None:
    with new_world(durable_max_recoveries=0) as world:  # or the run itself would be the next one
        first, second = world.pair()
        world.gates.close("held")
        held = world.send("flow", ["held"], concurrency_key="key", concurrency_limit=1)
        world.ledger.wait_for("start", "held", held.id)
        waiting = world.send("flow", ["next"], concurrency_key="key", concurrency_limit=1)
        eventually(lambda: world.tables.run(waiting.id)["reason"] == "slot", what="the second run to wait")

        world.owner(held.id).kill9()

        assert waiting.get(timeout=30) == ["next done"]
        world.tables.wait_for_state(held.id, "failed")
        assert {first.alive, second.alive} == {True, False}


def test_a_run_whose_worker_is_killed_with_a_slot_and_the_one_behind_it_both_end(world: World) -> None:
    world.pair()
    world.gates.close("held")
    held = world.send("flow", ["held"], concurrency_key="key", concurrency_limit=1)
    world.ledger.wait_for("start", "held", held.id)
    waiting = world.send("flow", ["next"], concurrency_key="key", concurrency_limit=1)
    eventually(lambda: world.tables.run(waiting.id)["reason"] == "slot", what="the second run to wait")

    world.owner(held.id).kill9()
    world.gates.open("held")

    assert waiting.get(timeout=30) == ["next done"]
    assert held.get(timeout=30) == ["held done"]
