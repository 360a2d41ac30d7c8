"""Waiting for results: callbacks, promises, and what they leave behind."""

from __future__ import annotations

import gc
import time
from itertools import pairwise
from typing import Any

import pytest
from awaiting import BURST, MOST, Scene, Stopwatch, ends_at_its_timeout, joined, new_id
from celery import states
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import (
    GroupResult,
)
from harness.waiting import eventually, take


def test_states_on_the_way_are_told_to_on_message(scene: Scene) -> None:
    task_id, told = new_id(), []
    waiting = scene.waiting(lambda: scene.result(task_id).get(timeout=20, on_message=told.append))
    for done in range(3):
        scene.store(task_id, {"done": done}, "PROGRESS")
        eventually(lambda done=done: told and told[-1]["result"] == {"done": done})
    scene.store(task_id, "over")
    assert waiting.result(20) == "over"
    assert [meta["status"] for meta in told] == ["PROGRESS"] * 3 + [states.SUCCESS]


def test_states_of_a_run_are_told_to_on_message(scene: Scene) -> None:
    run, told = scene.run(), []
    waiting = scene.waiting(lambda: run.get(timeout=20, on_message=told.append))
    eventually(lambda: told)
    scene.finish(run.id)
    assert waiting.result(20) == "done"
    assert [meta["status"] for meta in told] == [states.PENDING, states.SUCCESS]


def test_states_of_others_are_not_told(scene: Scene) -> None:
    mine, other, told = new_id(), new_id(), []
    waiting = scene.waiting(lambda: scene.result(mine).get(timeout=20, on_message=told.append))
    beside = scene.waiting(lambda: scene.result(other).get(timeout=20))
    scene.store(other)
    beside.result(20)
    scene.store(mine)
    waiting.result(20)
    assert {meta["task_id"] for meta in told} == {mine}


def test_states_of_a_set_are_told_and_asked_for_no_more_often(scene: Scene) -> None:
    ids, told = [new_id() for _ in range(3)], []
    clock = Stopwatch(scene)
    waiting = scene.waiting(joined(scene, ids, on_message=told.append))
    for one in ids:
        scene.store(one, None, states.STARTED)
    eventually(lambda: len(told) == 3)
    take(0.5)
    scene.store_all(ids)
    assert waiting.result(20) == ids
    assert sorted(meta["status"] for meta in told) == [states.STARTED] * 3 + [states.SUCCESS] * 3
    assert clock.questions <= BURST + MOST * clock.seconds


def test_a_callback_may_wait_for_another_result(scene: Scene) -> None:
    """It is called by the thread that asks; nobody would ask meanwhile, unless that one steps back."""
    promised, mine, other = (new_id() for _ in range(3))
    got: list[Any] = []
    result = scene.result(promised)
    result.then(lambda _: got.append(scene.result(other).get(timeout=20)))
    waiting = scene.waiting(lambda: scene.result(mine).get(timeout=40))
    scene.store(promised)
    eventually(lambda: len(scene.backend._poller._place.active) == 2, what="the callback to wait")
    take(0.3)  # it has asked in vain
    scene.store(other, "other")
    eventually(lambda: got == ["other"])
    scene.store(mine, "mine")
    assert waiting.result(20) == "mine"


def test_what_a_callback_raises_is_told_to_who_waits_for_that_result_and_to_nobody_else(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_it(_: Any) -> None:
        message = "by a callback"
        raise LookupError(message)

    mine, other = new_id(), new_id()
    beside = scene.result(other)
    beside.then(raise_it)
    waiting = scene.waiting(lambda: scene.result(mine).get(timeout=20))
    scene.store(other)
    eventually(lambda: "was not kept" in caplog.text)
    scene.store(mine, 1)
    assert waiting.result(20) == 1

    own = scene.result(mine)
    own.then(raise_it)
    with pytest.raises(LookupError, match="by a callback"):
        own.get(timeout=20)


def test_a_promise_is_kept_when_a_thread_waits_for_something_else(scene: Scene) -> None:
    ids, kept = [new_id() for _ in range(3)], []
    for one in ids:
        scene.result(one).then(lambda result: kept.append(result.get()))  # nobody holds this result
    group = GroupResult(new_id(), [scene.result(one) for one in ids], app=scene.app)
    group.then(lambda _: kept.append("all"))
    gc.collect()
    waiting = scene.waiting(lambda: scene.result().get(timeout=2))
    scene.store_all(ids)
    eventually(lambda: sorted(kept) == sorted([*ids, "all"]))
    ends_at_its_timeout(waiting)


def test_an_interval_is_kept(scene: Scene) -> None:
    called: list[float] = []
    with pytest.raises(ResultTimeoutError):
        list(
            scene.backend.get_many(
                [new_id()], timeout=1, interval=0.2, on_interval=lambda: called.append(time.monotonic())
            )
        )
    assert 2 <= len(called) <= 7
    assert all(later - earlier >= 0.19 for earlier, later in pairwise(called[:-1])), (
        "the last one: at the timeout"
    )


def test_waits_that_time_out_leave_nothing_behind(scene: Scene) -> None:
    task_id = new_id()
    for _ in range(20):
        with pytest.raises(ResultTimeoutError):
            scene.result(task_id).get(timeout=0)
    held = scene.result(task_id)
    with pytest.raises(ResultTimeoutError):
        held.get(timeout=0)
    assert not scene.backend._promises
    assert not scene.backend._promises._held


def test_groups_that_nobody_waits_for_leave_nothing_behind(scene: Scene) -> None:
    """Celery makes a promise of every member of every group, also of those frozen on the way."""
    for _ in range(100):
        group = GroupResult(new_id(), [scene.result() for _ in range(20)], app=scene.app)
    del group
    gc.collect()
    assert len(scene.backend._promises._held) <= 300
    assert len(scene.backend._promises.ids()) <= 300
