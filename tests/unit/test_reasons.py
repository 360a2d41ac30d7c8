"""Why something was tried so often, in counts: of runs by their attempts, of steps by their tries."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from celery_durable.operations.reasons import counted, why_so_many_attempts, why_so_many_tries
from celery_durable.store.views import AttemptView, StepView, TryView

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)


def attempt(number: int, outcome: str | None, error: str | None = None) -> AttemptView:
    return AttemptView(
        number=number,
        hostname="celery@a",
        pid=1,
        started_at=NOW,
        ended_at=NOW if outcome else None,
        seconds=1.0,
        outcome=outcome,
        error=error,
        traceback=None,
    )


def failed(error: str, attempt: int = 1) -> TryView:
    return TryView(at=NOW, seconds=1.0, attempt=attempt, error=error)


def step(key: str, tries: int, **facts: Any) -> StepView:
    given = {"seq": 1, "outcome": "ok", "arguments": "()", "attempt": 1, "spent": 0, "error": None, **facts}
    return StepView(key=key, tries=tries, seconds=1.0, stored_at=NOW, codec=None, output_bytes=None, **given)


def test_many_attempts_are_explained_by_how_often_each_thing_went_wrong() -> None:
    refused = [attempt(n, "retry", "ConnectionError: refused") for n in range(1, 45)]
    attempts = [*refused, attempt(45, "lost", "gone"), attempt(46, "lost", "gone"), attempt(47, None)]

    assert why_so_many_attempts(attempts) == [(44, "ConnectionError: refused"), (2, "it lost its worker")]


def test_errors_that_differ_in_numbers_alone_are_one_reason() -> None:
    errors = [f"Timeout: no answer from 10.0.0.{n}:5432 within {n}.5 s" for n in range(1, 41)]
    ids = [f"NotFound: job 0x{n:x}, order 3f2a8c1e-0000-4000-8000-{n:012d}" for n in range(5)]
    plain = ["ValueError: no", "ValueError: no", "ValueError: decade facade"]

    assert counted([*errors, *ids, *plain]) == [
        (40, "Timeout: no answer from … within … s"),
        (5, "NotFound: job …, order …"),
        (2, "ValueError: no"),
        (1, "ValueError: decade facade"),
    ]
    assert counted(["HTTP 503", "HTTP 503"]) == [(2, "HTTP 503")]


def test_steps_are_explained_by_their_failed_tries_the_worst_first() -> None:
    steps = (
        step("fetch", 1),
        step("upload", 3, earlier=(failed("OSError: full"), failed("OSError: full"))),
        step(
            "charge",
            61,
            outcome="trying",
            error="ConnectionError: refused",
            earlier=(*[failed("ConnectionError: refused")] * 48, failed("Timeout"), failed("Timeout")),
        ),
    )

    charge, upload = why_so_many_tries(steps)

    assert (charge.step, charge.count) == ("charge", 61)
    assert charge.reasons == [(49, "ConnectionError: refused"), (2, "Timeout")]
    assert (upload.step, upload.count, upload.reasons) == ("upload", 2, [(2, "OSError: full")])


def test_a_step_that_fails_once_in_each_attempt_is_told_by_the_attempts() -> None:
    earlier = tuple(failed("ValueError: no", number) for number in range(1, 4))

    assert why_so_many_tries([step("charge", 4, attempt=4, earlier=earlier)]) == []
