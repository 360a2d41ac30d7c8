"""A run's time as bars: nothing is lost, idle time is folded, everything stays in order."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_durable.flower.timeline import Scale, lay_out, thinned
from celery_durable.run import RunState
from celery_durable.store.views import AttemptView, RunView, StepView, TryView

START = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def run(state: str, now: float, **facts: Any) -> RunView:
    defaults: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunView))
    counters = {"attempt": 1, "generation": 0, "retries": 0, "recoveries": 0, "body_bytes": 2}
    fixed = {"key": 1, "id": "r", "task": "t", "queue": "q", "created_at": START, "now": at(now)}
    flags = {"cancel_requested": False, "orphaned": False, "state": RunState(state)}
    parts: dict[str, Any] = {"attempts": (), "steps": (), "events": (), "forks": ()}
    return RunView(**{**defaults, **counters, **fixed, **flags, **parts, **facts})


def attempt(number: int, start: float, end: float | None, outcome: str | None) -> AttemptView:
    return AttemptView(
        number=number,
        hostname="celery@a",
        pid=1,
        started_at=at(start),
        ended_at=None if end is None else at(end),
        seconds=1.0,
        outcome=outcome,
        error=None,
        traceback=None,
    )


def step(key: str, stored: float, seconds: float, **facts: Any) -> StepView:
    defaults: dict[str, Any] = dict.fromkeys(field.name for field in fields(StepView))
    fixed = {
        "seq": 1,
        "arguments": "()",
        "attempt": 1,
        "tries": 1,
        "spent": 0,
        "outcome": "ok",
        "earlier": (),
    }
    return StepView(**{**defaults, **fixed, "key": key, "stored_at": at(stored), "seconds": seconds, **facts})


def failed(ended: float, seconds: float, error: str = "ValueError: no") -> TryView:
    return TryView(at=at(ended), seconds=seconds, attempt=1, error=error)


def test_queue_time_attempts_and_the_wait_for_a_retry_follow_each_other() -> None:
    attempts = (attempt(1, 2, 4, "retry"), attempt(2, 9, 10, "succeeded"))
    found = lay_out(run("succeeded", 20, finished_at=at(10), attempts=attempts))

    assert [(bar.kind, bar.at, bar.wide) for bar in found.attempts] == [
        ("queue", 0, 20),
        ("retry", 20, 20),
        ("backoff", 40, 50),
        ("succeeded", 90, 10),
    ]
    assert (found.busy, found.queued, found.waited) == (3, 2, 5)


def test_what_a_waiting_run_waits_for_is_its_last_bar() -> None:
    waiting = {"attempts": (attempt(1, 0, 1, "retry"),)}
    assert lay_out(run("waiting", 5, reason="retry", **waiting)).attempts[-1].kind == "backoff"
    assert lay_out(run("waiting", 5, reason="signal", **waiting)).attempts[-1].kind == "wait"
    assert lay_out(run("pending", 5, **waiting)).attempts[-1].kind == "queue"


def test_idle_hours_are_folded_and_busy_time_keeps_its_shape() -> None:
    attempts = (attempt(1, 0, 10, "suspended"), attempt(2, 36_010, 36_020, "succeeded"))
    found = lay_out(run("succeeded", 40_000, finished_at=at(36_020), attempts=attempts))
    first, wait, second = found.attempts

    assert first.wide < 0.1
    assert first.fold_wide == pytest.approx(second.fold_wide)
    assert first.fold_wide > 40
    assert wait.fold_wide < 10
    assert [round(fold.seconds) for fold in found.folds] == [36_000]


def test_failed_tries_of_a_step_are_where_they_were_and_those_that_are_not_kept_before_them() -> None:
    kept = (failed(5, 1, "ValueError: no"), failed(7, 0.5, "ValueError: never"))
    steps = (step("one", 2, 1), step("two", 9, 1, tries=5, earlier=kept))
    attempts = (attempt(1, 0, 10, "succeeded"),)
    found = lay_out(run("succeeded", 10, finished_at=at(10), attempts=attempts, steps=steps))

    assert [(bar.kind, bar.at, bar.wide, bar.words) for bar in found.rows["two"].bars] == [
        ("tries", 20, 20, "2 earlier tries"),
        ("try", 40, 10, "try 3 failed: ValueError: no"),
        ("try", 65, 5, "try 4 failed: ValueError: never"),
        ("ok", 80, 10, "two"),
    ]


def test_a_retry_of_the_run_is_told_once_by_the_try_that_failed_in_it() -> None:
    attempts = (attempt(1, 0, 2, "retry"), attempt(2, 5, 8, "succeeded"))
    steps = (step("one", 7, 1, tries=2, spent=1, attempt=2, earlier=(failed(1.5, 1),)),)
    found = lay_out(run("succeeded", 10, finished_at=at(8), attempts=attempts, steps=steps))

    assert [bar.kind for bar in found.rows["one"].bars] == ["try", "ok"]


def test_a_page_draws_the_last_tries_of_each_of_very_many_steps() -> None:
    tries = tuple(failed(n, 0.5) for n in range(50))
    steps = tuple(step(f"step#{n}", 60, 1, tries=51, earlier=tries) for n in range(1000))

    shown = thinned(run("succeeded", 70, finished_at=at(70), steps=steps))

    assert {len(one.earlier) for one in shown.steps} == {3}
    assert shown.steps[0].earlier[-1] == tries[-1]
    assert thinned(run("succeeded", 70, finished_at=at(70), steps=steps[:20])).steps == steps[:20]


def test_what_an_attempt_did_when_it_lost_its_worker_is_part_of_the_step_that_came_next() -> None:
    attempts = (attempt(1, 0, 4, "lost"), attempt(2, 5, 10, "succeeded"))
    steps = (step("one", 1, 1), step("two", 8, 3, attempt=2), step("three", 9, 1, attempt=2))
    found = lay_out(run("succeeded", 10, finished_at=at(10), attempts=attempts, steps=steps))

    assert [(bar.kind, bar.at, bar.wide) for bar in found.rows["two"].bars] == [
        ("cut", 10, 30),
        ("ok", 50, 30),
    ]
    assert [bar.kind for bar in found.rows["three"].bars] == ["ok"]


def test_a_wait_begins_when_it_is_stored_and_ends_when_it_is_over() -> None:
    steps = (
        step("sleep", 1, 0, kind="sleep", outcome="waiting", due=at(4)),
        step("approved", 5, 3, kind="signal"),
        step("paid", 8, 0, kind="signal", outcome="waiting", due=at(500)),
    )
    attempts = (attempt(1, 0, 1, "suspended"), attempt(2, 4, 5, "suspended"), attempt(3, 8, 8, "suspended"))
    rows = lay_out(run("waiting", 10, reason="signal", attempts=attempts, steps=steps)).rows

    assert [(row.outcome, row.bars[0].at, row.bars[0].wide) for row in rows.values()] == [
        ("waited", 10, 30),
        ("waited", 50, 30),
        ("waiting", 80, 20),
    ]


def test_children_lie_under_the_wait_that_started_them_and_their_work_is_not_folded() -> None:
    def child(name: str, created: float) -> dict[str, Any]:
        times = {"created_at": at(created), "started_at": at(created + 1), "finished_at": at(created + 90)}
        return {"id": name, "task": "page", "state": "succeeded", **times}

    attempts = (attempt(1, 0, 1, "suspended"), attempt(2, 92, 93, "succeeded"))
    steps = (step("gather", 1, 91, kind="children"),)
    finished = run("succeeded", 100, finished_at=at(93), attempts=attempts, steps=steps)
    found = lay_out(finished, [child("a", 1), child("b", 2)])

    assert {key: [row.run for row in rows] for key, rows in found.children.items()} == {
        "gather": ["a"],
        None: ["b"],
    }
    assert [bar.kind for bar in found.children["gather"][0].bars] == ["queue", "succeeded"]
    assert found.folds == ()


def test_what_is_executed_now_begins_at_the_latest_checkpoint() -> None:
    running = run("running", 10, attempts=(attempt(1, 0, None, None),), steps=(step("one", 4, 1),))
    now = lay_out(running).executing
    cut_off = lay_out(running, alive=False)

    assert now is not None
    assert (now.at, now.wide, now.words) == (40, 60, "executing now")
    assert cut_off.executing is not None
    assert (cut_off.executing.kind, cut_off.attempts[-1].kind) == ("lost", "lost")


def test_a_run_that_was_just_created_is_laid_out() -> None:
    found = lay_out(run("pending", 0))

    assert found.seconds > 0
    assert found.rows == {}


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e5)), max_size=20),
    st.lists(st.floats(0, 1e6), min_size=2, max_size=20),
)
def test_folding_keeps_the_order_of_moments_and_stays_within_the_whole(
    stretches: list[tuple[float, float]], moments: list[float]
) -> None:
    scale = Scale(1e6, [(start, min(start + length, 1e6)) for start, length in stretches])
    folded = [scale.folded(moment) for moment in sorted(moments)]

    assert folded == sorted(folded)
    assert all(0 <= place <= scale.folded_seconds + 1e-6 for place in folded)
    assert scale.folded_seconds <= scale.seconds + 1e-6
