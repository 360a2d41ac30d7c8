"""Runs as JSON, with the field names of `celery durable … --json`."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery_durable.operations.calls import calls_of
from celery_durable.operations.compensations import rollback_of
from celery_durable.operations.reasons import why_so_many_attempts, why_so_many_tries
from celery_durable.store.views import RunSummary

if TYPE_CHECKING:
    from celery_durable.flower.asking import Story
    from celery_durable.operations.compensations import RollbackView
    from celery_durable.operations.reasons import Reasons


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
        "tried_again": {
            "attempts": _reasons(why_so_many_attempts(run.attempts)),
            "steps": [
                {"step": one.step, "failures": one.count, "reasons": _reasons(one.reasons)}
                for one in why_so_many_tries(run.steps)
            ],
        },
        "attempts": run.attempts,
        "steps": run.steps,
        "calls": calls_of(run),
        "rollback": _rollback(rollback_of(run)),
        "events": run.events,
        "signals": run.signals,
        "parent": story.parent,
        "root": story.root,
        "children": story.children,
        "now": run.now,
    }


def _rollback(found: RollbackView | None) -> dict[str, Any] | None:
    return None if found is None else {"sentence": found.sentence, **asdict(found)}


def _reasons(reasons: Reasons) -> list[dict[str, Any]]:
    return [{"count": count, "reason": reason} for count, reason in reasons]
