"""Replay: a body that runs again meets its history, and nothing is written."""

from __future__ import annotations

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from replaying import MOMENT, inside, replaying, seam, stored

import celery_durable as durable
from celery_durable import context
from celery_durable.config import Settings
from celery_durable.exceptions import NondeterminismError, RunCancelled, StepInterruptedError, StepUsageError
from celery_durable.executor.keys import Keys

calls: list[str] = []


@dataclass
class Video:
    """A value with a type."""

    path: str
    length: timedelta


@durable.step
def download(url: str) -> Video:
    calls.append(url)
    return Video(url, timedelta(seconds=1))


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


VIDEO = Video("a.mp4", timedelta(seconds=9))


def test_a_finished_step_returns_what_is_stored_with_its_type_and_does_not_run() -> None:
    execution = replaying([stored("download", download, VIDEO, "http://a")])

    assert inside(execution, lambda: download("http://a")) == VIDEO
    assert calls == []
    execution.conclude()


def test_calls_of_one_name_are_told_apart_by_their_order() -> None:
    history = [
        stored("download", download, VIDEO, "a"),
        stored("download#2", download, replace(VIDEO, path="b"), "b", seq=2),
    ]

    assert inside(replaying(history), lambda: [download("a").path, download("b").path]) == ["a.mp4", "b"]


def test_a_key_of_ones_own_does_not_depend_on_the_order() -> None:
    history = [stored("intro", download, VIDEO, "a")]

    assert inside(replaying(history), lambda: download.options(key="intro")("a")) == VIDEO


def test_a_key_used_twice_is_an_error() -> None:
    step = download.options(key="intro")
    execution = replaying([stored("intro", download, VIDEO, "a")])

    with pytest.raises(StepUsageError, match="'intro' is used twice in this run"):
        inside(execution, lambda: [step("a"), step("a")])


def begun(*calls: str) -> list[str]:
    """Give calls their keys; one in front of which stands `=` was given its own."""
    keys, made = Keys(), []
    for call in calls:
        base = call.removeprefix("=")
        made.append(keys.begin(base, keyed=base != call))
        keys.end(base)
    return made


@pytest.mark.parametrize(
    "calls",
    [
        ("=send#2", "send", "send"), ("send", "send", "=send#2"), ("send#2", "send", "send"),
        ("send", "send", "send#2"), ("send", "send", "send", "=send#3"),
    ],
)  # fmt: skip
def test_a_key_that_another_call_has_by_its_number_is_used_twice(calls: tuple[str, ...]) -> None:
    """Else it would write over that call's checkpoint."""
    with pytest.raises(StepUsageError, match=r"'send#[23]' is used twice in this run"):
        begun(*calls)


def test_other_keys_with_a_number_sign_are_keys_like_any() -> None:
    calls = ["=a#0", "=a#1", "=a#02", "=a#x", "a", "=b#3", "b", "b", "a#", "#2"]
    assert begun(*calls) == ["a#0", "a#1", "a#02", "a#x", "a", "b#3", "b", "b#2", "a#", "#2"]


def test_steps_of_an_inlined_task_are_keyed_under_its_name() -> None:
    history = [
        stored("download", download, VIDEO, "a"),
        stored("media.audio/download", download, replace(VIDEO, path="b"), "a", seq=2),
    ]

    def body() -> list[str]:
        with context.inlined("media.audio"):
            inner = download("a").path
        return [inner, download("a").path]

    assert inside(replaying(history), body) == ["b", "a.mp4"]


def test_a_step_called_by_a_step_is_a_part_of_it() -> None:
    def body() -> Video:
        frame = context.current()
        assert frame is not None
        with context.inside_step(frame, "outer"):
            return download("inner")

    assert inside(replaying(), body).path == "inner"
    assert calls == ["inner"]


def test_a_stored_error_is_raised_again_and_the_step_does_not_run() -> None:
    form, dumped = seam().dump_error(ValueError("no such video"))
    known = stored("download", download, None, "a", outcome="error", output=dumped, codec=form)

    with pytest.raises(ValueError, match="no such video"):
        inside(replaying([known]), lambda: download("a"))
    assert calls == []


def test_a_step_stored_with_other_arguments_is_nondeterminism_with_both_of_them() -> None:
    execution = replaying([stored("download", download, VIDEO, "http://a")])

    with pytest.raises(NondeterminismError) as error:
        inside(execution, lambda: download("http://b"))

    assert "http://a" in str(error.value.stored)  # type: ignore[attr-defined]
    assert "http://b" in str(error.value.called)  # type: ignore[attr-defined]
    assert error.value.step == "download"  # type: ignore[attr-defined]


def test_a_body_that_ends_without_a_step_of_its_history_is_nondeterminism() -> None:
    execution = replaying(
        [stored("download", download, VIDEO, "a"), stored("gone", seq=2), stored("lost", seq=3)]
    )
    inside(execution, lambda: download("a"))

    with pytest.raises(NondeterminismError, match="ended without the steps 'gone', 'lost'") as error:
        execution.conclude()
    assert error.value.missed == ["gone", "lost"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("outcome", ["trying", "started", "discarded"])
def test_a_step_that_did_not_finish_need_not_be_met_again(outcome: str) -> None:
    replaying([stored("download", outcome=outcome)]).conclude()


@pytest.mark.parametrize(("setting", "told"), [("warn", 2), ("ignore", 0)])
def test_nondeterminism_may_be_a_warning_or_nothing(
    setting: Any, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    execution = replaying(
        [stored("download", download, VIDEO, "a"), stored("gone", seq=2)], Settings(nondeterminism=setting)
    )

    with caplog.at_level(logging.WARNING):
        assert inside(execution, lambda: download("b")) == VIDEO
        execution.conclude()

    assert len(caplog.records) == told


def test_an_at_most_once_step_that_was_begun_is_not_begun_again() -> None:
    charge = download.options(at_most_once=True)
    execution = replaying([stored("download", download, None, "a", outcome="started")])

    with pytest.raises(StepInterruptedError, match="outcome was stored"):
        inside(execution, lambda: charge("a"))
    assert calls == []


def test_a_child_that_was_started_is_not_started_again() -> None:
    execution = replaying([stored("delay:media.thumbnail", value="child-1")])

    def new_run(_: str) -> Any:
        pytest.fail("it is known")

    assert execution.child("media.thumbnail", new_run) == ("child-1", None)
    execution.conclude()


def test_a_cancelled_run_is_told_at_its_first_new_step_and_not_in_its_replay() -> None:
    execution = replaying([stored("download", download, VIDEO, "a")], cancel_requested=True)

    def body() -> None:
        assert download("a") == VIDEO
        download("b")

    with pytest.raises(RunCancelled):
        inside(execution, body)
    assert calls == []


def test_calls_of_one_name_in_two_threads_at_once_need_keys() -> None:
    """At a replay they might come in another order."""
    entered, leave = threading.Event(), threading.Event()

    class Slow(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            entered.set()
            leave.wait(10)
            return super().get(key, default)

    execution = replaying([stored("download", download, VIDEO, "a")])
    execution._history._steps = Slow(execution._history._steps)
    with context.activate(execution), ThreadPoolExecutor(1) as pool:
        first = pool.submit(download, "a")
        entered.wait(10)
        try:
            with pytest.raises(StepUsageError, match=r"several threads at once.*step\.options\(key="):
                download("a")
        finally:
            leave.set()
        assert first.result(10) == VIDEO


def values(**changes: Any) -> list[Any]:
    def body() -> list[Any]:
        return [durable.uuid4(), durable.uuid4(), durable.random().random()]

    drawn: list[Any] = inside(replaying(**changes), body)
    return drawn


def test_chance_is_the_same_in_every_attempt_and_another_in_every_run() -> None:
    assert values() == values(attempt=2, fence=uuid.uuid4())
    assert values()[0] != values()[1]
    assert values(seed=uuid.UUID(int=7)) != values()
    assert values()[0].version == 4


def test_time_is_the_time_that_was_stored_then_the_databases() -> None:
    earlier = [MOMENT - timedelta(days=2), MOMENT - timedelta(days=1)]
    execution = replaying([stored("a", clock=(earlier[0],)), stored("b", seq=2, clock=(earlier[1],))])

    times = inside(execution, lambda: [durable.now() for _ in range(4)])

    assert times[:2] == earlier
    assert MOMENT <= times[2] <= times[3] < MOMENT + timedelta(minutes=1)


def test_inside_a_step_time_and_chance_are_the_ordinary_ones() -> None:
    def body() -> list[Any]:
        frame = context.current()
        assert frame is not None
        with context.inside_step(frame, "download"):
            return [durable.uuid4(), durable.now()]

    first, second = inside(replaying(), body), inside(replaying(), body)
    assert first[0] != second[0]
    assert first[1] > MOMENT - timedelta(days=10_000)


def ids(**changes: Any) -> list[str | None]:
    execution = replaying(**changes)

    def body() -> list[str | None]:
        frame = context.current()
        assert frame is not None
        with context.inside_step(frame, "download"):
            inner = context.current()
            assert inner is not None
            return [execution.child_of_step(inner, "media.thumbnail") for _ in range(2)]

    return [
        execution.linked_id("media.publish/0"),
        execution.linked_id("media.publish/1"),
        *inside(execution, body),
    ]


def test_what_a_run_starts_has_the_same_ids_in_every_attempt_of_a_generation() -> None:
    assert ids() == ids(attempt=2, fence=uuid.uuid4(), seed=uuid.uuid4(), retries=3)
    assert len(set(ids())) == 4
    for another in ({"generation": 1}, {"id": "run-2"}, {"replacements": 1}):
        assert not set(ids()) & set(ids(**another))


def test_a_thread_of_its_own_within_a_step_starts_children_under_new_ids() -> None:
    execution = replaying()

    assert execution.child_of_step(context.Frame(execution, step="download"), "media.thumbnail") is None
