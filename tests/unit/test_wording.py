"""Runs in words."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_durable.operations.wording import clock, relative, span, summary
from celery_durable.run import RunState
from celery_durable.store.views import RunSummary

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)
UTC = timezone.utc


def seconds(count: float) -> datetime:
    return NOW + timedelta(seconds=count)


def run(state: str, **facts: Any) -> RunSummary:
    defaults: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunSummary))
    counters = {"attempt": 1, "generation": 0, "retries": 0, "recoveries": 0}
    fixed = {"key": 1, "id": "r", "task": "t", "queue": "q", "created_at": NOW, "now": NOW}
    flags = {"cancel_requested": False, "orphaned": False, "state": RunState(state)}
    return RunSummary(**{**defaults, **counters, **fixed, **flags, **facts})


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (-1, "0 ms"),
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (3.44, "3.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3 * 3600 + 250, "3 h 4 min"),
        (86_400 * 2 + 3 * 3600, "2 d 3 h"),
    ],
)
def test_a_span_has_two_units_at_most(length: float, words: str) -> None:
    assert span(length) == words


def test_moments_are_relative_to_the_databases_now() -> None:
    assert relative(seconds(5), NOW) == "in 5.0 s"
    assert relative(seconds(-90), NOW) == "1 min 30 s ago"


def test_a_clock_names_the_day_only_when_it_is_another() -> None:
    assert clock(seconds(60), NOW, UTC) == "12:01:00"
    assert clock(seconds(86_400), NOW, UTC) == "2026-05-05 12:00:00"
    assert clock(seconds(60), NOW, timezone(timedelta(hours=12))) == "00:01:00"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"state": "pending", "published_at": seconds(-3)}, "waits for a worker, message sent 3.0 s ago"),
        ({"state": "pending"}, "waits for the keeper to send its message"),
        (
            {"state": "pending", "published_at": NOW, "attempt": 0, "expires_at": seconds(60)},
            "waits for a worker, message sent 0 ms ago; expires in 1 min",
        ),
        (
            {
                "state": "waiting",
                "reason": "retry",
                "due": seconds(12),
                "retries": 2,
                "error": "ValueError: no",
            },
            "waits for a retry until 12:00:12 (in 12 s), retry 2 after ValueError: no",
        ),
        (
            {"state": "waiting", "reason": "timer", "due": seconds(3600), "attempt": 0},
            "is not due yet: waits until 13:00:00 (in 1 h)",
        ),
        ({"state": "waiting", "reason": "timer", "due": seconds(60)}, "sleeps until 12:01:00 (in 1 min)"),
        (
            {"state": "waiting", "reason": "timer", "due": seconds(-60)},
            "sleeps; due 1 min ago, the keeper wakes it",
        ),
        ({"state": "waiting", "reason": "signal"}, "waits for a signal"),
        ({"state": "waiting", "reason": "moonlight"}, "waits (moonlight)"),
        (
            {"state": "running", "hostname": "celery@a", "pid": 7, "claimed_at": seconds(-2)},
            "runs on celery@a, pid 7, for 2.0 s",
        ),
        (
            {"state": "running", "hostname": "celery@a", "pid": 7, "cancel_requested": True},
            "runs on celery@a, pid 7; asked to stop, does so at its next step",
        ),
        (
            {"state": "running", "hostname": "celery@a", "orphaned": True},
            "its worker celery@a is gone; the leader hands it to another one",
        ),
        (
            {"state": "succeeded", "started_at": seconds(-70), "finished_at": seconds(-60)},
            "1 min ago, 10 s after its start",
        ),
        (
            {"state": "failed", "finished_at": seconds(-60), "error": "ValueError: no"},
            "1 min ago: ValueError: no",
        ),
        (
            {"state": "failed", "reason": "exhausted", "finished_at": seconds(-60), "recoveries": 11},
            "1 min ago, exhausted: it lost its worker 11 times",
        ),
        (
            {"state": "cancelled", "reason": "revoked", "finished_at": seconds(-60)},
            "1 min ago by a revoke",
        ),
    ],
)
def test_a_summary_says_what_a_run_does_waits_for_or_ended_with(facts: dict[str, Any], words: str) -> None:
    assert summary(run(**facts), UTC) == words


def test_every_state_has_a_summary() -> None:
    for state in RunState:
        assert isinstance(summary(run(state.value, finished_at=NOW), UTC), str)
