"""Waiting for many results: thousands are asked for together, and yielded as they finish."""

from __future__ import annotations

from typing import Any

import pytest
from awaiting import BURST, MOST, Scene, Stopwatch, joined, new_id
from celery import states
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import (
    EagerResult,
    GroupResult,
    ResultSet,
)
from harness.waiting import eventually
from kombu.exceptions import ContentDisallowed

from celery_durable.waiting import pace, poller
from celery_durable.waiting.pace import Question


@pytest.mark.parametrize("method", ["get", "join", "join_native"])
def test_a_set_is_joined_in_order_whatever_the_order_of_its_ends(scene: Scene, method: str) -> None:
    ids = [new_id() for _ in range(20)]
    group = GroupResult(new_id(), [scene.result(one) for one in ids], app=scene.app)
    waiting = scene.waiting(lambda: getattr(group, method)(timeout=20))
    for one in reversed(ids):
        scene.store(one, one)
    assert waiting.result(20) == ids


@pytest.mark.parametrize("method", ["get", "join", "join_native"])
def test_an_empty_set_is_joined_at_once(scene: Scene, method: str) -> None:
    assert getattr(ResultSet([], app=scene.app), method)(timeout=20) == []
    assert list(ResultSet([], app=scene.app).iter_native()) == []
    assert list(scene.backend.get_many([])) == []


@pytest.mark.parametrize("method", ["get", "join", "join_native"])
def test_a_set_ends_at_its_timeout(scene: Scene, method: str) -> None:
    done, late = new_id(), new_id()
    scene.store(done)
    clock = Stopwatch(scene)
    with pytest.raises(ResultTimeoutError):
        getattr(ResultSet([scene.result(done), scene.result(late)]), method)(timeout=0.3)
    assert 0.3 <= clock.seconds < 1.5


def test_a_failed_member_is_raised_or_returned(scene: Scene) -> None:
    good, bad = new_id(), new_id()
    scene.store(good, 1)
    scene.store(bad, LookupError("gone"), states.FAILURE)
    with pytest.raises(LookupError):
        joined(scene, [good, bad])()
    values = joined(scene, [good, bad], propagate=False)()
    assert values[0] == 1
    assert isinstance(values[1], LookupError)


def test_a_callback_is_called_for_each_member(scene: Scene) -> None:
    ids = [new_id() for _ in range(3)]
    scene.store_all(ids)
    seen: list[Any] = []
    assert joined(scene, ids, callback=lambda *told: seen.append(told))() is None
    assert sorted(seen) == sorted((one, one) for one in ids)


def test_sets_within_sets_eager_results_and_results_met_twice_are_joined(scene: Scene) -> None:
    first, second = new_id(), new_id()
    inner = GroupResult(new_id(), [scene.result(first), scene.result(second)], app=scene.app)
    eager: Any = EagerResult(new_id(), "eager", states.SUCCESS)
    known = scene.result(first)
    waiting = scene.waiting(
        lambda: ResultSet([known, inner, eager, scene.result(first)], app=scene.app).join_native(timeout=20)
    )
    scene.store_all([first, second])
    # `join_native` puts each value at the last place of its id, as Celery does.
    assert waiting.result(20) == [None, [first, second], "eager", first]


def test_each_member_is_yielded_as_it_finishes(scene: Scene) -> None:
    ids = [new_id() for _ in range(3)]
    members = ResultSet([scene.result(one) for one in ids]).iter_native(timeout=20)
    for one in reversed(ids):
        scene.store(one)
        assert next(members)[0] == one
    assert list(members) == []


def test_who_stops_in_the_middle_of_a_set_keeps_nobody_from_waiting(scene: Scene) -> None:
    ids = [new_id() for _ in range(2)]
    scene.store(ids[0])
    members = ResultSet([scene.result(one) for one in ids]).iter_native(timeout=20)
    next(members)
    waiting = scene.waiting(lambda: scene.result(ids[1]).get(timeout=20))
    scene.store(ids[1], "second")
    assert waiting.result(20) == "second"
    assert [one for one, _ in members] == [ids[1]]


def test_thousands_are_asked_for_together(scene: Scene) -> None:
    ids = [new_id() for _ in range(3000)]
    clock = Stopwatch(scene)
    waiting = scene.waiting(joined(scene, ids, timeout=60))
    for start in range(0, 3000, 500):
        scene.store_all(ids[start : start + 500])
    assert waiting.result(60) == ids
    assert clock.questions <= BURST + 3000 / 50 + MOST * clock.seconds


def test_members_that_finish_one_after_the_other_are_no_reason_to_ask_more_often(scene: Scene) -> None:
    ids = [new_id() for _ in range(1000)]
    clock = Stopwatch(scene)
    waiting = scene.waiting(joined(scene, ids))
    scene.hurry()
    for one in ids:
        scene.store_all([one])
    assert waiting.result(20) == ids
    assert clock.questions <= 2 + BURST + MOST * clock.seconds


def test_between_parts_of_an_answer_there_is_no_pause(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poller, "question", lambda *_, **__: Question(1000.0))
    ids = [new_id() for _ in range(3000)]
    scene.store_all(ids)
    clock = Stopwatch(scene)
    assert joined(scene, ids, interval=1000, timeout=30)() == ids
    assert clock.seconds < 25


@pytest.mark.parametrize("method", ["get", "join"])
def test_thousands_that_are_there_cost_a_few_questions(scene: Scene, method: str) -> None:
    ids = [new_id() for _ in range(3000)]
    scene.store_all(ids)
    clock = Stopwatch(scene)
    assert getattr(ResultSet([scene.result(one) for one in ids]), method)(timeout=60) == ids
    assert clock.questions <= 20


def test_large_results_are_fetched_a_few_at_a_time(scene: Scene) -> None:
    ids = [new_id() for _ in range(60)]
    for one in ids:
        scene.store(one, "x" * 500_000)
    assert all(len(value) == 500_000 for value in joined(scene, ids)())
    assert scene.backend._poller._asking._most <= 8


def test_many_are_got_as_far_as_they_are_there(scene: Scene) -> None:
    done, late = new_id(), new_id()
    scene.store(done, 1)
    found = dict(scene.backend.get_many({done, late}, max_iterations=1))
    assert {task_id: meta["result"] for task_id, meta in found.items()} == {done: 1}
    waiting = scene.waiting(lambda: dict(scene.backend.get_many([done, late], timeout=20)))
    scene.store(late, 2)
    assert {task_id: meta["result"] for task_id, meta in waiting.result(20).items()} == {done: 1, late: 2}
    with pytest.raises(ResultTimeoutError):
        list(scene.backend.get_many([done, new_id()], timeout=0.1))


def test_a_result_that_cannot_be_read_is_an_error_to_whoever_waits_for_it_alone(scene: Scene) -> None:
    good, bad = new_id(), new_id()
    waiting = [scene.waiting(lambda one=one: scene.result(one).get(timeout=20)) for one in (good, bad)]
    store: Any = scene.backend.store
    store.results.store(bad, states.SUCCESS, b"\x80\x04.", "application/x-python-serialize", None, None)
    with pytest.raises(ContentDisallowed):
        waiting[1].result(20)
    scene.store(good, 1)
    assert waiting[0].result(20) == 1


def test_those_who_wait_for_one_are_asked_for_more_often_than_those_who_wait_for_thousands(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (poller, pace):
        monkeypatch.setattr(module, "rest", lambda _: 5.0)  # as if a large question took more than a second
    monkeypatch.setattr(pace, "_EAGER", 60.0)
    many, one = [new_id() for _ in range(600)], new_id()
    large = scene.waiting(joined(scene, many))
    eventually(lambda: scene.backend._poller._place.large_at > 0, what="the large question")
    small = scene.waiting(lambda: scene.result(one).get(timeout=20))
    before = scene.questions()
    eventually(lambda: scene.questions() > before + 1, what="the small question, twice")
    clock = Stopwatch(scene)
    scene.store_all([one, *many])
    assert small.result(20) == one
    assert clock.seconds < 4
    assert large.result(20) == many
