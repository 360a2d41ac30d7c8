"""Runs as JSON, with the field names of `celery durable … --json`."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.store.views import RunSummary, RunView

if TYPE_CHECKING:
    from celery_durable.flower.asking import Story
    from celery_durable.flower.redaction import Redaction


Summary = TypeVar("Summary", bound=RunSummary)


def document(value: object) -> object:
    """Return as plain JSON what JSON has no type for."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, RunSummary):
        return run_document(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def run_document(run: RunSummary) -> dict[str, Any]:
    """Return the documented JSON of a run in a list."""
    parts = ("key", "now", "attempts", "steps", "events", "signals", "children")
    fields = {name: value for name, value in vars(run).items() if name not in parts}
    return {"id": fields.pop("id"), "celery_state": run.celery_state, **fields}


def story_document(story: Story) -> dict[str, Any]:
    """Return the documented JSON of a run's whole story."""
    run, why = story.run, story.diagnosis
    return {
        "run": run_document(run),
        "why": {
            "sentence": why.sentence,
            "tone": why.tone,
            "because": why.because,
            "advice": why.advice,
            "stuck": why.stuck,
        },
        "attempts": run.attempts,
        "steps": run.steps,
        "events": run.events,
        "signals": run.signals,
        "parent": story.parent,
        "root": story.root,
        "children": story.children,
        "now": run.now,
    }


def redacted(run: RunView, redaction: Redaction, *, payloads: bool) -> RunView:
    """Return a run as it may be shown: no arguments where payloads are hidden, texts and events redacted."""
    attempts = tuple(
        replace(
            one,
            error=redaction.text("error", run.task, one.error),
            traceback=redaction.text("traceback", run.task, one.traceback),
        )
        for one in run.attempts
    )
    steps = tuple(
        replace(
            one,
            arguments=str(redaction("arguments", one.key, one.arguments)) if payloads else "",
            error=redaction.text("error", one.key, one.error),
        )
        for one in run.steps
    )
    events = tuple(
        replace(one, detail=_event(one.kind, one.detail, redaction, payloads)) for one in run.events
    )
    return replace(
        summarised(run, redaction),
        traceback=redaction.text("traceback", run.task, run.traceback),
        attempts=attempts,
        steps=steps,
        events=events,
    )


def summarised(run: Summary, redaction: Redaction) -> Summary:
    """Return a run of a list as it may be shown."""
    if not redaction.active:
        return run
    error = redaction.text("error", run.task, run.error)
    return replace(run, error=error, progress=redaction("progress", run.task, run.progress))


# Details of events that are payloads: what was sent, asked and answered.
_PAYLOADS = frozenset(
    {"payload", "body", "request", "response", "value", "result", "args", "kwargs", "overrides"}
)


def _event(kind: str, detail: dict[str, Any], redaction: Redaction, payloads: bool) -> dict[str, Any]:  # noqa: FBT001
    shown = {
        name: value if payloads or name not in _PAYLOADS else "[hidden]" for name, value in detail.items()
    }
    answer = redaction("event", kind, shown)
    return answer if isinstance(answer, dict) else {"detail": answer}
