"""What a body sees of its run, from wherever it looks."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from replaying import inside, replaying

from celery_durable import context
from celery_durable.context import current, current_run, idempotency_key, inlined, inside_step
from celery_durable.exceptions import DurableError, StepUsageError

if TYPE_CHECKING:
    from collections.abc import Callable


def in_thread(work: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(10)


def name_of_run() -> str:
    return current_run().id


def test_a_body_sees_its_run() -> None:
    def body() -> tuple[object, ...]:
        run = current_run()
        return run.id, run.task, run.attempt, run.cancelled, run.idempotency_key

    execution = replaying(attempt=3, cancel_requested=True)

    assert inside(execution, body) == ("run-1", "media.process", 3, True, "run-1")
    assert current() is None


def test_a_steps_body_has_a_key_of_its_own() -> None:
    def body() -> tuple[str, str]:
        frame = current()
        assert frame is not None
        with inside_step(frame, "thumbnail#2"):
            return idempotency_key(), current_run().idempotency_key

    assert inside(replaying(), body) == ("run-1/thumbnail#2",) * 2


def test_outside_a_step_there_is_no_key_of_one() -> None:
    with pytest.raises(DurableError, match=r"call it inside a @durable\.step function"):
        inside(replaying(), idempotency_key)


def test_a_task_called_as_a_function_is_inlined_under_its_name() -> None:
    def scope() -> str:
        frame = current()
        assert frame is not None
        return frame.scope

    def body() -> list[str]:
        with inlined("media.audio"):
            first = scope()
            with inlined("media.curve"):
                second = scope()
        return [first, second, scope()]

    assert inside(replaying(), body) == ["media.audio/", "media.audio/media.curve/", ""]
    with inlined("media.audio"):
        assert current() is None


def test_a_task_called_inside_a_step_is_part_of_the_step() -> None:
    def body() -> object:
        frame = current()
        assert frame is not None
        with inside_step(frame, "download"), inlined("media.audio"):
            return current()

    frame = inside(replaying(), body)
    assert (frame.scope, frame.step) == ("", "download")


def test_a_thread_that_the_body_starts_joins_the_one_run_of_this_process() -> None:
    assert inside(replaying(), lambda: in_thread(name_of_run)) == "run-1"


def test_a_thread_started_within_a_step_is_part_of_the_step() -> None:
    execution = replaying()
    execution._performer.inside = "download"

    def step() -> str | None:
        frame = current()
        return frame and frame.step

    assert inside(execution, lambda: in_thread(step)) == "download"


def test_with_several_runs_a_thread_without_a_context_cannot_tell_which_is_meant() -> None:
    first, second = replaying(), replaying(id="run-2")
    ready, done = threading.Event(), threading.Event()
    other: Future[None] = Future()

    def run_second() -> None:
        with context.activate(second):
            ready.set()
            done.wait(10)
        other.set_result(None)

    threading.Thread(target=run_second).start()
    ready.wait(10)
    try:
        with context.activate(first):
            with pytest.raises(StepUsageError, match=r"contextvars\.copy_context"):
                in_thread(current)
            copied = contextvars.copy_context()
            assert in_thread(lambda: copied.run(name_of_run)) == "run-1"
    finally:
        done.set()
        other.result(10)


def test_a_thread_that_executes_something_else_is_in_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_elsewhere", [lambda: True])

    assert inside(replaying(), lambda: in_thread(current)) is None


def test_the_main_thread_beside_a_run_in_a_thread_is_in_no_run() -> None:
    ready, done = threading.Event(), threading.Event()
    finished: Future[None] = Future()

    def run() -> None:
        with context.activate(replaying()):
            ready.set()
            done.wait(10)
        finished.set_result(None)

    threading.Thread(target=run).start()
    ready.wait(10)
    try:
        assert current() is None
    finally:
        done.set()
        finished.result(10)
