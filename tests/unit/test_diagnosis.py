"""Why a run does or does not move: each sentence from its facts."""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from celery_durable.operations.compensations import CompensationView, RollbackView
from celery_durable.operations.diagnosis import Facts, diagnose
from celery_durable.run import RunState
from celery_durable.store.views import RunSummary, StepView

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)
UTC = timezone.utc


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def run(state: str, **facts: Any) -> RunSummary:
    defaults: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunSummary))
    counters = {"attempt": 1, "generation": 0, "retries": 0, "recoveries": 0}
    fixed = {"key": 1, "id": "r", "task": "t", "queue": "q", "created_at": NOW, "now": NOW}
    flags = {"cancel_requested": False, "orphaned": False, "state": RunState(state)}
    return RunSummary(**{**defaults, **counters, **fixed, **flags, **facts})


def step(key: str, outcome: str, **facts: Any) -> StepView:
    defaults: dict[str, Any] = dict.fromkeys(field.name for field in fields(StepView))
    fixed = {"seq": 1, "arguments": "()", "attempt": 1, "tries": 1, "spent": 0, "seconds": 1.0}
    return StepView(**{**defaults, **fixed, "stored_at": at(-2), "key": key, "outcome": outcome, **facts})


HELD = {"hostname": "celery@a", "pid": 7, "claimed_at": at(-9)}
DUE = {"reason": "retry", "due": at(12), "retries": 3, "error": "ConnectionError: refused"}
HEALTHY = {"workers": 2, "led_for": 5.0, "silent": 1.0, "queues": frozenset({"q"})}

SILENT = "Its worker celery@a has been silent for 42 s, longer than its lease of 30 s"

SENTENCES: list[tuple[str, str, dict[str, Any], dict[str, Any], str, str | None]] = [
    # what, state, the run, the facts around it, the sentence, a part of the advice
    ("busy", "running", HELD, {}, "Runs on celery@a, pid 7, for 9.0 s", None),
    (
        "warning",
        "running",
        HELD,
        {"silent": 20.0},
        "Its worker celery@a has been silent for 20 s",
        None,
    ),
    (
        "warning",
        "running",
        HELD,
        {"silent": 42.0},
        f"{SILENT}: the leader hands the run to another one",
        None,
    ),
    (
        "bad",
        "running",
        HELD,
        {"silent": 42.0, "workers": 0, "led_for": -40.0},
        f"{SILENT}, and no other is alive to go on with it",
        "Start a worker",
    ),
    (
        "bad",
        "running",
        {**HELD, "orphaned": True},
        {"silent": None, "led_for": None},
        "Its worker celery@a is gone, and nobody leads, so nobody hands the run on",
        "durable keeper",
    ),
    (
        "busy",
        "running",
        {**HELD, "cancel_requested": True},
        {},
        "Runs on celery@a, pid 7, for 9.0 s; asked to stop, does so at its next step",
        None,
    ),
    (
        "bad",
        "pending",
        {"published_at": at(-3)},
        {"workers": 0},
        "No worker is alive to take this run",
        "worker",
    ),
    (
        "bad",
        "pending",
        {"published_at": at(-3)},
        {"queues": frozenset({"video", "mail"})},
        "No worker listens to its queue q",
        "celery -A <app> worker -Q q",
    ),
    (
        "calm",
        "pending",
        {"published_at": at(-3)},
        {"ahead": 12},
        "Waits for its turn: 12 runs are in front of it in q",
        None,
    ),
    (
        "calm",
        "pending",
        {"published_at": at(-3)},
        {"queues": None},
        "Waits for a worker, message sent 3.0 s ago",
        None,
    ),
    ("calm", "pending", {"due": at(-1)}, {}, "Waits for the keeper to send its message", None),
    (
        "warning",
        "pending",
        {"due": at(-60)},
        {},
        "Its message should have been sent 1 min ago",
        "Is the broker up?",
    ),
    (
        "bad",
        "pending",
        {"due": at(-60)},
        {"led_for": None},
        "Its message was never sent, and nobody leads",
        "durable keeper",
    ),
    (
        "warning",
        "waiting",
        DUE,
        {"max_retries": 5},
        "Waits for a retry until 12:00:12 (in 12 s), retry 3 of 5 after ConnectionError: refused",
        None,
    ),
    ("calm", "waiting", {"reason": "timer", "due": at(60)}, {}, "Sleeps until 12:01:00 (in 1 min)", None),
    (
        "calm",
        "waiting",
        {"reason": "signal", "due": at(60)},
        {},
        "Waits for a signal until 12:01:00 (in 1 min)",
        None,
    ),
    ("calm", "waiting", {"reason": "children"}, {"children": (3, 10)}, "Waits for its children", None),
    ("calm", "waiting", {"reason": "slot"}, {}, "Waits for a slot", None),
    (
        "bad",
        "waiting",
        {"reason": "version", "due": at(30), "version": "2.1"},
        {},
        "No live worker has the code of its version 2.1",
        "durable_version = '2.1'",
    ),
    (
        "bad",
        "waiting",
        {"reason": "timer", "due": at(-40)},
        {"led_for": -3.0},
        "It was due 40 s ago, and nobody leads to wake it",
        "durable keeper",
    ),
    (
        "warning",
        "waiting",
        {"reason": "timer", "due": at(-40)},
        {},
        "It was due 40 s ago and has not been woken yet",
        None,
    ),
    (
        "warning",
        "waiting",
        {"reason": "timer", "due": at(60)},
        {"workers": 0},
        "Sleeps until 12:01:00 (in 1 min)",
        "Start a worker",
    ),
    (
        "good",
        "succeeded",
        {"started_at": at(-70), "finished_at": at(-60)},
        {},
        "Succeeded 1 min ago, 10 s after its start",
        None,
    ),
    (
        "bad",
        "failed",
        {"finished_at": at(-60), "error": "ValueError: no"},
        {"steps": [step("charge", "error", tries=4)]},
        "Failed 1 min ago: ValueError: no",
        "Resume it",
    ),
    (
        "bad",
        "failed",
        {"finished_at": at(-60), "reason": "exhausted", "recoveries": 11},
        {},
        "Failed 1 min ago, exhausted: it lost its worker 11 times",
        "what kills its worker",
    ),
    (
        "bad",
        "failed",
        {"finished_at": at(-60), "error": "ValueError: no", "ending": "failed"},
        {},
        "Failed 1 min ago, taken back: ValueError: no",
        "fork it",
    ),
    (
        "bad",
        "failed",
        {"finished_at": at(-60), "reason": "exhausted", "recoveries": 11, "ending": "failed"},
        {},
        "Failed 1 min ago, exhausted: it lost its worker 11 times, and was taken back",
        "fork it",
    ),
    (
        "bad",
        "failed",
        {"finished_at": at(-60), "reason": "rollback", "error": "no", "ending": "failed"},
        {},
        "Failed 1 min ago, not all of it taken back: no; resume tries the rest",
        "Resume it",
    ),
    (
        "calm",
        "cancelled",
        {"finished_at": at(-60), "reason": "cancelled"},
        {},
        "Cancelled 1 min ago by an operator",
        None,
    ),
]


@pytest.mark.parametrize(("tone", "state", "facts", "around", "sentence", "advice"), SENTENCES)
def test_a_run_is_explained_by_its_facts(  # noqa: PLR0917  (a row of the table)
    tone: str, state: str, facts: dict[str, Any], around: dict[str, Any], sentence: str, advice: str | None
) -> None:
    found = diagnose(Facts(run=run(state, **facts), **{**HEALTHY, **around}), UTC)

    assert (found.sentence, found.tone) == (sentence, tone)
    assert (advice or "") in (found.advice or "")
    assert found.stuck is (tone == "bad" and not RunState(state).final)


AROUND = {"steps", "children", "unfinished", "slot", "slot_limit", "slot_taken"}


def test_a_step_that_fails_again_and_again_is_the_headline_also_while_it_waits() -> None:
    trying = step("charge", "trying", tries=47, error="TimeoutError: no answer")
    found = diagnose(Facts(run=run("running", **HELD), steps=[trying], **HEALTHY), UTC)
    assert found.sentence == "Step charge has failed 47 times and is tried again"
    assert found.because[-1] == "the last error is TimeoutError: no answer"
    assert (found.tone, found.stuck) == ("warning", False)

    waiting = run("waiting", reason="retry", due=at(60))
    found = diagnose(Facts(run=waiting, steps=[trying], **HEALTHY), UTC)
    assert found.sentence.startswith("Step charge failed 47 times, waits for its next try until 12:01:00")
    found = diagnose(Facts(run=waiting, steps=[trying], **{**HEALTHY, "workers": 0}), UTC)
    assert "no worker is alive" in found.because[-1]


def test_a_run_whose_compensations_could_not_be_found_out_says_why() -> None:
    rollback = RollbackView(ends_as="cancelled", over=True, known=False, compensations=())
    ended = run(
        "failed", reason="rollback", ending="cancelled", finished_at=at(-60), error="KeyError: 'config'"
    )
    found = diagnose(Facts(run=ended, rollback=rollback, **HEALTHY), UTC)

    assert found.sentence == (
        "Failed 1 min ago, and what it had to take back could not be found out: KeyError: 'config'"
    )
    assert found.because == (rollback.sentence,)
    assert (found.tone, found.stuck) == ("bad", False)


def test_a_compensation_that_failed_is_the_headline_and_not_the_command_that_mends_it() -> None:
    failed = CompensationView(key="rollback:refund", name="refund", outcome="failed", error="Timeout: bank")
    left = CompensationView(key="rollback:cancel", name="cancel", outcome="left")
    rollback = RollbackView(ends_as="failed", over=True, known=True, compensations=(failed, left))
    ended = run(
        "failed", reason="rollback", ending="failed", finished_at=at(-60), error="A compensation failed"
    )
    steps = [
        step("pay", "error", error="CardRefused"),
        step("rollback:refund", "error", error="Timeout: bank"),
    ]
    found = diagnose(Facts(run=ended, rollback=rollback, steps=steps, **HEALTHY), UTC)

    assert found.sentence == "Failed 1 min ago, and refund could not take it back: Timeout: bank"
    assert found.because[0] == "it began with step pay: CardRefused"
    assert found.because[1].startswith("0 of 2 compensations are made; refund failed for good")
    assert (found.tone, found.stuck) == ("bad", False)


def test_what_it_rests_on_is_said_beside_it() -> None:
    def because(state: str, **facts: Any) -> str:
        own = {name: facts.pop(name) for name in list(facts) if name not in AROUND}
        return "; ".join(diagnose(Facts(run=run(state, **own), **{**HEALTHY, **facts}), UTC).because)

    done = step("probe", "ok", stored_at=at(-4))
    trying = step("charge", "trying", tries=2, error="TimeoutError: no answer")
    assert because("running", **HELD) == "no step has finished yet"
    assert because("running", **HELD, steps=[done]) == "the last finished step is probe, 4.0 s ago"
    assert "step charge failed 2 times" in because("running", **HELD, steps=[done, trying])
    assert because("waiting", reason="children", children=(3, 10)) == "3 of 10 children have ended"
    unfinished = ["page 0d0f68a2 (running)"]
    assert because("waiting", reason="children", children=(3, 10), unfinished=unfinished).endswith(
        "; not yet page 0d0f68a2 (running)"
    )
    slot = {"slot": "customer-42", "slot_limit": 2, "slot_taken": 2}
    assert (
        because("waiting", reason="slot", **slot) == "2 of 2 are taken of the concurrency key 'customer-42'"
    )
    failed = step("charge", "error", tries=4)
    assert because("failed", finished_at=at(-1), steps=[failed]) == "step charge failed after 4 tries"


def test_every_state_and_reason_has_a_sentence() -> None:
    for state in RunState:
        for reason in (None, "retry", "timer", "signal", "children", "slot", "replaced", "moonlight"):
            facts = Facts(run=run(state.value, finished_at=NOW, reason=reason, **HELD), **HEALTHY)
            assert diagnose(facts, UTC).sentence
