"""What a list says of a run at one glance: the error first, and nothing that another column says."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_durable.flower.words import glance
from celery_durable.run import RunState
from celery_durable.store.views import RunSummary

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)


def run(state: str, **facts: Any) -> RunSummary:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunSummary))
    values |= {"retries": 0, "recoveries": 0, "attempt": 1, "cancel_requested": False, "orphaned": False}
    return RunSummary(**{**values, "state": RunState(state), "now": NOW, "finished_at": NOW, **facts})


@pytest.mark.parametrize(
    ("state", "facts", "words"),
    [
        ("succeeded", {}, ""),
        ("running", {}, ""),
        ("running", {"progress": {"done": 3, "of": 10}}, "3 of 10"),
        ("running", {"progress": "almost"}, "almost"),
        ("running", {"orphaned": True, "hostname": "celery@a"}, "its worker celery@a is gone; the leader"),
        ("running", {"cancel_requested": True}, "runs; asked to stop, does so at its next step"),
        ("failed", {"error": "ValueError: no"}, "ValueError: no"),
        (
            "failed",
            {"error": "gone", "reason": "exhausted", "recoveries": 4},
            "exhausted, it lost its worker 4",
        ),
        ("failed", {"error": "ValueError: no", "ending": "failed"}, "0 ms ago, taken back: ValueError: no"),
        (
            "waiting",
            {"reason": "retry", "retries": 2, "due": NOW + timedelta(seconds=90), "error": "ValueError: no"},
            "retry 2 in 1 min 30 s after ValueError: no",
        ),
        ("waiting", {"reason": "retry", "due": NOW + timedelta(seconds=90)}, "next try in 1 min 30 s"),
        ("waiting", {"reason": "signal", "awaits": "approved"}, "waits for the signal 'approved'"),
    ],
)
def test_a_list_says_of_a_run_what_its_other_columns_do_not(
    state: str, facts: dict[str, Any], words: str
) -> None:
    assert glance(run(state, **facts)).startswith(words)
    assert bool(glance(run(state, **facts))) is bool(words)
