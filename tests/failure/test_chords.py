"""Chords whose workers die: every part counts once, and the body starts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chord
from celery.exceptions import TaskRevokedError
from harness.monkey import Monkey
from harness.waiting import eventually

from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.workers import Worker
    from harness.world import World


def test_a_body_whose_sender_is_killed_after_the_last_part_is_started_by_the_keeper(world: World) -> None:
    # Given a chord whose last part's child dies when it is about to store the body
    world.worker(concurrency=2)
    plain, fragile = world.app.tasks["not_durable"], world.app.tasks["fragile"]
    result = chord([plain.s(str(number)) for number in range(3)], fragile.s()).apply_async()
    world.ledger.wait_for("killed", "fragile")

    # Then the claim runs out, the leader looks again, and the body starts, once
    assert result.get(timeout=30) == ["0", "1", "2"]
    assert world.ledger.count("body", "join") == 1
    assert world.tables.one("select count(*) from durable.chord where done_at is null") == 0


def test_a_part_whose_child_is_killed_counts_when_it_is_done(world: World) -> None:
    worker = world.worker(concurrency=2)
    world.gates.close("mid")
    flow, join = world.app.tasks["flow"], world.app.tasks["join"]
    result = chord([flow.s(["one"]), flow.s(["mid"])], join.s()).apply_async()
    started = world.ledger.wait_for("start", "mid")

    worker.kill_child(started.pid)
    world.ledger.wait_for("start", "mid", times=2)
    world.gates.open("mid")

    assert result.get(timeout=30) == [["mid done"], ["one done"]]
    assert world.ledger.count("body", "join") == 1


def test_a_part_that_is_cancelled_ends_its_chord(world: World) -> None:
    world.worker(concurrency=2)
    world.gates.close("mid")
    flow, join = world.app.tasks["flow"], world.app.tasks["join"]
    result = chord([flow.s(["one"]), flow.s(["mid", "never"])], join.s()).apply_async()
    started = world.ledger.wait_for("start", "mid")

    assert started.run is not None
    Runs(world.app).cancel(started.run)
    world.gates.open("mid")

    with pytest.raises(TaskRevokedError, match="cancelled"):
        result.get(timeout=30)
    eventually(lambda: result.state == "FAILURE")  # its parents are told first
    assert world.ledger.count("body", "join") == 0


def test_a_chord_whose_workers_are_killed_all_the_time_starts_its_body_once(
    new_world: Callable[..., Any],
) -> None:
    with new_world(durable_max_recoveries=100) as world:
        world.pair(concurrency=2)
        monkey = Monkey(world, seed=1, concurrency=2)
        flow, join = world.app.tasks["flow"], world.app.tasks["join"]
        parts = [str(number) for number in range(120)]
        result = chord([flow.s([part], 0.01) for part in parts], join.s()).apply_async()

        for done in range(10, 100, 10):
            world.ledger.wait_for("end", times=done, timeout=30)
            monkey.kill_child(eldest(world)) if done % 50 else monkey.kill_main(eldest(world))

        assert result.get(timeout=60) == sorted([f"{part} done"] for part in parts)
        assert world.ledger.count("body", "join") == 1
        assert world.tables.rows("select * from durable.chord_part") == []


def eldest(world: World) -> Worker:
    """Return the longest living worker."""
    return next(worker for worker in world.workers if worker.alive)
