"""What of a run was taken back, in words: all of it, some, as far as it failed, or not known yet."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

import pytest

from celery_durable.operations.calls import calls_of
from celery_durable.operations.compensations import rollback_of
from celery_durable.run import RunState
from celery_durable.store.views import EventView, RunView, StepView

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)


def run(state: RunState = RunState.FAILED, **facts: Any) -> RunView:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunView))
    values |= {"steps": (), "events": (), "state": state, "ending": "failed", "rollbacks": []}
    values |= {"finished_at": NOW if state.final else None, **facts}
    return RunView(**values)


def step(key: str, outcome: str, tries: int = 1) -> StepView:
    facts: dict[str, Any] = {"seq": 1, "arguments": "(7)", "attempt": 1, "spent": 0, "error": None}
    facts |= {"seconds": 0.5, "stored_at": NOW, "codec": None, "output_bytes": None}
    return StepView(key=key, outcome=outcome, tries=tries, **facts)


RESUME = "A resume tries what is left"
A, B, C = "rollback:refund", "rollback:cancel", "inner/rollback:cancel"


@pytest.mark.parametrize(
    ("state", "steps", "sentence"),
    [
        (RunState.FAILED, ("ok", "ok", "ok"), "All 3 compensations are made"),
        (RunState.CANCELLING, ("ok", None, None), "1 of 3 compensations is made so far"),
        (RunState.CANCELLING, ("ok", "trying", None), "1 of 3 compensations is made so far"),
        (
            RunState.FAILED,
            ("ok", "error", None),
            f"1 of 3 compensations is made; cancel failed for good, 1 before it was not tried. {RESUME}",
        ),
        (
            RunState.FAILED,
            ("ok", "ok", "error"),
            f"2 of 3 compensations are made; refund failed for good. {RESUME}",
        ),
        (RunState.PENDING, ("ok", "discarded", None), "1 of 3 compensations is made so far"),
    ],
)
def test_the_last_registered_comes_first_and_what_is_left_is_said(
    state: RunState, steps: tuple[str | None, ...], sentence: str
) -> None:
    stored = [step(key, outcome) for key, outcome in zip((C, B, A), steps, strict=True) if outcome]
    found = rollback_of(run(state, rollbacks=[A, B, C], steps=tuple(stored)))

    assert found is not None
    assert [one.name for one in found.compensations] == ["inner/cancel", "cancel", "refund"]
    words = {"ok": "made", "error": "failed", "trying": "trying"}
    assert [one.outcome for one in found.compensations] == [words.get(one or "", "left") for one in steps]
    assert found.sentence == sentence


def test_what_a_lost_attempt_had_registered_is_not_known_before_a_replay() -> None:
    found = rollback_of(run(RunState.PENDING, rollbacks=None))

    assert found is not None
    assert found.sentence.startswith("What it has registered is not known yet")
    failed = rollback_of(run(RunState.FAILED, rollbacks=None))
    assert failed is not None
    assert failed.sentence.startswith("What it has registered could not be found out, and stands")
    assert rollback_of(run(rollbacks=[])) is None
    assert rollback_of(run(ending=None, rollbacks=None)) is None


def test_a_call_of_which_a_redaction_left_nothing_or_nonsense_is_still_a_call() -> None:
    details: list[dict[str, Any]] = [
        {
            "step": "pay",
            "method": "POST",
            "url": "https://bank",
            "status": 503,
            "seconds": 0.2,
            "request": {},
        },
        {"status": None, "error": "ReadTimeout"},
        {"status": "***", "seconds": True, "url": ["x"], "response": "hidden"},
        {"detail": "gone"},
    ]
    events = tuple(EventView(at=NOW, kind="call", actor=None, detail=detail) for detail in details)
    others = (EventView(at=NOW, kind="resumed", actor="ada", detail={}),)

    calls = calls_of(run(events=events + others))

    assert [(call.url, call.status, call.seconds, call.failed) for call in calls] == [
        ("https://bank", 503, 0.2, True),
        ("", None, None, True),
        ("", None, None, False),  # nothing is kept that says so
        ("", None, None, False),
    ]
