"""Waiting for a result: who asks, how often, and what becomes of threads that wait together."""

from __future__ import annotations

import gc
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from awaiting import BURST, MOST, Scene, Stopwatch, at_most, ends_at_its_timeout, new_id, scene_on
from celery import states
from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import (
    AsyncResult,
    ResultSet,
    allow_join_result,
    denied_join_result,
)
from contending import background
from harness.waiting import eventually, take

from celery_durable.waiting import poller

if TYPE_CHECKING:
    from concurrent.futures import Future


# -- one result -------------------------------------------------------------------------------------------


def test_a_result_that_is_there_costs_one_question(scene: Scene) -> None:
    task_id = new_id()
    scene.store(task_id, 42)
    clock = Stopwatch(scene)
    assert scene.result(task_id).get(timeout=20) == 42
    assert clock.questions == 1


def test_what_is_in_the_cache_costs_none(url: str) -> None:
    with scene_on(url, result_cache_max=10) as scene:
        task_id = new_id()
        scene.store(task_id, 42)
        assert scene.result(task_id).get(timeout=20) == 42
        clock = Stopwatch(scene)
        assert scene.result(task_id).get(timeout=20) == 42
        assert clock.questions == 0


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.5])
def test_a_wait_asks_at_most_fifty_times_a_second(scene: Scene, seconds: float) -> None:
    task_id = new_id()
    clock = Stopwatch(scene)
    waiting = scene.waiting(lambda: scene.result(task_id).get(timeout=20))
    take(seconds)
    scene.store(task_id, "late")
    assert waiting.result(20) == "late"
    assert clock.questions <= 2 + MOST * clock.seconds


def test_a_long_wait_asks_twenty_times_a_second_and_the_server_sleeps_for_nobody(scene: Scene) -> None:
    waiting = scene.waiting(lambda: scene.result().get(timeout=3))
    take(1.8)
    clock = Stopwatch(scene)
    take(0.8)
    assert clock.questions <= 2 + 23 * clock.seconds
    ends_at_its_timeout(waiting)


def test_nobody_who_waits_asks_nothing_and_leaves_no_thread(scene: Scene) -> None:
    before = set(threading.enumerate())
    scene.store(task_id := new_id())
    assert scene.result(task_id).get(timeout=20)
    with pytest.raises(ResultTimeoutError):
        scene.result().get(timeout=0.05)
    threads, clock = set(threading.enumerate()) - before, Stopwatch(scene)
    take(0.5)
    assert clock.questions == 0
    assert not [one for one in threads if "durable" in one.name]


@pytest.mark.parametrize("timeout", [0, 0.05, 0.4])
def test_a_wait_ends_at_its_timeout(scene: Scene, timeout: float) -> None:
    clock = Stopwatch(scene)
    with pytest.raises(ResultTimeoutError):
        scene.result().get(timeout=timeout)
    assert timeout <= clock.seconds < timeout + 1
    assert clock.questions >= 1


def test_a_result_that_is_there_is_returned_whatever_the_timeout_even_when_another_thread_asks(
    scene: Scene,
) -> None:
    scene.store(task_id := new_id(), 1)
    other = scene.waiting(lambda: scene.result().get(timeout=1))
    assert scene.result(task_id).get(timeout=0) == 1
    ends_at_its_timeout(other)


def test_outcomes_are_raised_as_celery_does(scene: Scene) -> None:
    failed, revoked = new_id(), new_id()
    scene.store(failed, LookupError("gone"), states.FAILURE)
    scene.store(revoked, TaskRevokedError("terminated"), states.REVOKED)
    with pytest.raises(LookupError, match="gone"):
        scene.result(failed).get(timeout=20)
    assert isinstance(scene.result(failed).get(timeout=20, propagate=False), LookupError)
    with pytest.raises(TaskRevokedError):
        scene.result(revoked).get(timeout=20)


def test_a_failed_parent_is_told_at_once(scene: Scene) -> None:
    parent = scene.result()
    child = AsyncResult(new_id(), app=scene.app, parent=parent)
    waiting = scene.waiting(lambda: child.get(timeout=20))
    scene.store(parent.id, LookupError("first link"), states.FAILURE)
    with pytest.raises(LookupError, match="first link"):
        waiting.result(20)


def test_a_task_may_not_wait_for_another_unless_it_says_so(scene: Scene) -> None:
    scene.store(task_id := new_id(), 1)
    with denied_join_result():
        for result in (scene.result(task_id), ResultSet([scene.result(task_id)])):
            with pytest.raises(RuntimeError, match=r"Never call result\.get"):
                result.get(timeout=1)
            assert result.get(timeout=20, disable_sync_subtasks=False)
        with allow_join_result():
            assert scene.result(task_id).get(timeout=20) == 1


# -- runs -------------------------------------------------------------------------------------------------


def test_a_run_is_waited_for_like_a_plain_task(scene: Scene) -> None:
    run = scene.run()
    waiting = scene.waiting(lambda: scene.result(run.id).get(timeout=20))
    scene.finish(run.id)
    assert waiting.result(20) == "done"


def test_a_cancelled_run_is_revoked(scene: Scene) -> None:
    run = scene.run()
    waiting = scene.waiting(lambda: run.get(timeout=20))
    scene.finish(run.id, "cancelled", None, reason="cancelled")
    with pytest.raises(TaskRevokedError):
        waiting.result(20)


@pytest.mark.parametrize(
    "hidden", [{"reason": "ignored", "state": "cancelled"}, {"meta": b'{"durable_result_ignored": true}'}]
)
def test_a_run_that_shows_no_result_is_waited_for_in_vain_and_not_asked_for_all_the_time(
    scene: Scene, hidden: dict[str, Any]
) -> None:
    """As with Celery's other backends; and the server answers at once each time, since the run is over."""
    run = scene.run()
    scene.finish(run.id, **hidden)
    other = scene.waiting(lambda: scene.result().get(timeout=1))  # so that there is something to ask for
    clock = Stopwatch(scene)
    with pytest.raises(ResultTimeoutError):
        scene.result(run.id).get(timeout=1)
    ends_at_its_timeout(other)
    assert clock.questions <= 10 + 40 * clock.seconds


# -- threads ----------------------------------------------------------------------------------------------


def test_threads_that_wait_share_their_questions(scene: Scene) -> None:
    ids = [new_id() for _ in range(12)]
    clock = Stopwatch(scene)
    waiting = [scene.waiting(lambda one=one: scene.result(one).get(timeout=20)) for one in ids]
    take(1.5)
    scene.store_all(ids)
    assert [one.result(20) for one in waiting] == ids
    assert clock.questions <= BURST + 2 + MOST * clock.seconds


def test_threads_that_wait_for_the_same_result_all_get_it(scene: Scene) -> None:
    task_id = new_id()
    waiting = [scene.waiting(lambda: scene.result(task_id).get(timeout=20)) for _ in range(6)]
    scene.store(task_id, "shared")
    assert [one.result(20) for one in waiting] == ["shared"] * 6


def test_when_the_thread_that_asks_is_done_another_one_asks(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "_ROUND", 1000.0)  # nobody looks by himself whether somebody asks
    first, second = new_id(), new_id()
    leader = scene.waiting(lambda: next(scene.backend.get_many([first], interval=1000.0)))
    follower = scene.waiting(lambda: next(scene.backend.get_many([second], interval=1000.0)))
    eventually(lambda: scene.backend._poller._place.asleep, what="the second thread to sleep")
    take(0.3)  # both have had their first call of on_interval
    scene.store(first)
    assert leader.result(20)[0] == first
    scene.store(second)
    assert follower.result(20)[0] == second


class AlarmError(Exception):
    pass


def test_a_time_limit_that_hits_the_thread_that_asks_hits_nobody_else(scene: Scene) -> None:
    """Celery's soft time limit raises from a signal handler, at any line."""

    def alarm(*_: Any) -> None:
        raise AlarmError

    def wait_beside(task_id: str) -> Future[Any]:
        eventually(lambda: scene.backend._poller._place.active)
        return background(lambda: scene.result(task_id).get(timeout=20))

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        for number in range(8):
            task_id = new_id()
            beside = background(lambda task_id=task_id: wait_beside(task_id))
            signal.setitimer(signal.ITIMER_REAL, 0.15 + number * 0.013)
            with pytest.raises(AlarmError):
                scene.result().get(timeout=20)
            clock = Stopwatch(scene)
            scene.store(task_id, "mine")
            assert beside.result(20).result(20) == "mine"
            assert clock.seconds < 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_result_objects_may_end_in_any_thread_while_others_wait(scene: Scene) -> None:
    """The garbage collector calls `AsyncResult.__del__` wherever it happens to run."""
    ids = [new_id() for _ in range(40)]
    thresholds = gc.get_threshold()

    def wait(task_id: str) -> Any:
        for _ in range(30):
            cycle: list[Any] = [scene.result(task_id), scene.result()]
            cycle.append(cycle)
            scene.backend.add_pending_results(cycle[:2], weak=True)
        return scene.result(task_id).get(timeout=20)

    gc.set_threshold(1)
    try:
        waiting = [background(lambda one=one: wait(one)) for one in ids]
        scene.store_all(ids)
        assert [one.result(60) for one in waiting] == ids
    finally:
        gc.set_threshold(*thresholds)

    def nothing_left() -> bool:
        gc.collect()  # does nothing while another thread collects
        return not scene.backend._promises

    eventually(nothing_left)


def test_ending_a_result_object_waits_for_nobody(scene: Scene) -> None:
    """It must not: the thread that asks may be the one whose garbage is collected."""
    waiting = scene.waiting(lambda: scene.result().get(timeout=1.5))
    result = scene.backend.add_pending_result(scene.result())
    clock = Stopwatch(scene)
    for _ in range(100):
        scene.backend.remove_pending_result(result)
    assert clock.seconds < 0.5
    ends_at_its_timeout(waiting)


def test_threads_that_begin_to_wait_at_once_share_one_asker(scene: Scene) -> None:
    barrier, ids = at_most(16), [new_id() for _ in range(16)]

    def wait(task_id: str) -> Any:
        barrier.wait()
        return scene.result(task_id).get(timeout=20)

    waiting = [background(lambda one=one: wait(one)) for one in ids]
    eventually(lambda: len(scene.backend._poller._place.active) == 16)
    assert len(scene.backend._poller._place.leader) == 1
    scene.store_all(ids)
    assert [one.result(20) for one in waiting] == ids
    assert not scene.backend._poller._place.active
    assert not scene.backend._poller._place.leader
