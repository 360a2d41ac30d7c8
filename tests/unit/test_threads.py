"""Threads without a context of their own: they join the run they were started in, and never another one."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from replaying import inside, replaying, stored

import celery_durable as durable
from celery_durable import context
from celery_durable.exceptions import StepUsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

ADVICE = r"contextvars\.copy_context\(\)\.run.*durable\.gather.*asyncio\.to_thread"


@durable.step
def note(text: str) -> str:
    return text


@contextmanager
def a_thread() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose one thread runs already."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result(10)
        yield pool


def run_seen_in(pool: ThreadPoolExecutor) -> str:
    return pool.submit(lambda: durable.current_run().id).result(10)


def test_a_thread_of_a_run_that_is_over_writes_nothing_into_the_history_of_the_next_one() -> None:
    with ExitStack() as threads:
        with context.activate(replaying()):
            pool = threads.enter_context(a_thread())
            assert run_seen_in(pool) == "run-1"
        second = replaying([stored("note", note, "stored", "x")], id="run-2")
        with context.activate(second), pytest.raises(StepUsageError, match=ADVICE):
            pool.submit(note, "x").result(10)


def test_a_thread_that_is_older_than_the_run_joins_it_with_the_runs_context() -> None:
    with a_thread() as pool, context.activate(replaying([stored("note", note, "stored", "x")])):
        assert pool.submit(contextvars.copy_context().run, note, "x").result(10) == "stored"


def test_for_who_asks_for_it_a_thread_that_is_older_than_every_run_is_in_none() -> None:
    with a_thread() as pool, context.activate(replaying()), context.activate(replaying(id="run-2")):
        assert pool.submit(lambda: context.current(older=True)).result(10) is None


def test_a_thread_that_a_run_started_before_the_others_began_joins_it() -> None:
    with context.activate(replaying()), a_thread() as pool, context.activate(replaying(id="run-2")):
        assert run_seen_in(pool) == "run-1"


def test_a_thread_that_may_belong_to_a_run_that_is_over_by_now_joins_no_other() -> None:
    elsewhere, ended = contextvars.copy_context(), context.activate(replaying())
    elsewhere.run(ended.__enter__)
    with ExitStack() as going:
        first = going.enter_context(a_thread())
        going.enter_context(context.activate(replaying(id="run-2")))
        second = going.enter_context(a_thread())
        elsewhere.run(ended.__exit__, None, None, None)
        third = going.enter_context(a_thread())

        with pytest.raises(StepUsageError, match=ADVICE):
            run_seen_in(first)
        with pytest.raises(StepUsageError, match=ADVICE):
            second.submit(lambda: context.current(older=True)).result(10)
        assert run_seen_in(third) == "run-2"


def test_beside_steps_that_are_executed_in_other_threads_it_cannot_be_told_where_a_thread_belongs() -> None:
    def body() -> Any:
        frame = context.here()
        assert frame is not None
        with context.inside_step(frame, "download"), a_thread() as pool:
            return pool.submit(context.current).result(10)

    with pytest.raises(StepUsageError, match=ADVICE):
        inside(replaying(), body)
