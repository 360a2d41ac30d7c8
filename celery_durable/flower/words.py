"""What templates say in their own words."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from tornado.escape import xhtml_escape

from celery_durable.operations.wording import relative, span, summary
from celery_durable.run import RunState

ICONS = {
    "pending": "…",
    "running": "▶",
    "waiting": "◷",
    "retrying": "↻",
    "stuck": "!",
    "cancelling": "⊘",
    "succeeded": "✓",
    "failed": "✕",
    "cancelled": "⊘",
}
_KB, _MB, _GB = 1024, 1024**2, 1024**3
_CLOSE = 8


def moment(when: datetime | None, now: datetime | None = None) -> str:
    """Return a `<time>` element: as seen from `now`, or as a clock that the browser sets to its zone."""
    if when is None:
        return ""
    iso = when.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if now is None:
        return f'<time datetime="{iso}" data-clock>{when:%Y-%m-%d %H:%M:%S}</time>'
    return f'<time datetime="{iso}" data-relative>{xhtml_escape(relative(when, now))}</time>'


def size(count: int | None) -> str:
    """Return a number of bytes for people."""
    if count is None:
        return ""
    for unit, name in ((_GB, "GB"), (_MB, "MB"), (_KB, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def word(run: Any) -> str:
    """Return the word for a run's state: `retrying` for one that waits for a retry."""
    if run.state is RunState.WAITING and run.reason == "retry":
        return "retrying"
    return str(run.state)


def pill(state: str) -> str:
    """Return a state with its icon."""
    icon = ICONS.get(state, "•")
    text = xhtml_escape(state)
    return f'<span class="dur-pill dur-{text}"><span aria-hidden="true">{icon}</span> {text}</span>'


def short(run_id: str) -> str:
    """Return as much of an id as people compare."""
    return run_id[:_CLOSE] if len(run_id) == 36 else run_id  # noqa: PLR2004  (a UUID)


def progress(run: Any) -> str:
    """Return how far a run says that it has come: `3 of 10`, or what it has said."""
    told = run.progress
    if isinstance(told, dict) and isinstance(told.get("done"), (int, float)) and told.get("of"):
        return f"{told['done']} of {told['of']}"
    return "" if told is None else str(told)


def glance(run: Any) -> str:
    """Return what a list says of a run that its other columns do not: the error first."""
    if run.state is RunState.SUCCEEDED:
        return ""
    if run.state is RunState.RUNNING and not run.orphaned and not run.cancel_requested:
        return progress(run)
    if run.state is RunState.WAITING and run.reason == "retry" and run.due is not None and run.due > run.now:
        again = f"retry {run.retries} " if run.retries else "next try "
        return f"{again}{relative(run.due, run.now)}" + (f" after {run.error}" if run.error else "")
    if run.state is RunState.FAILED and run.error and run.ending is None:
        again = f"exhausted, it lost its worker {run.recoveries} times: " if run.reason == "exhausted" else ""
        return f"{again}{run.error}"
    return summary(run)


def detail(event: Any) -> list[tuple[str, str]]:
    """Return what an event says, as names and texts."""
    shown = []
    for name, value in event.detail.items():
        if name == "operation" or value in (None, [], ""):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        shown.append((name, text.encode("utf-8", "backslashreplace").decode()))
    return shown


def earlier(step: Any) -> str:
    """Return the earlier tries of a step as JSON: number, time, seconds, attempt and error of each."""
    first = step.tries - len(step.earlier)
    tries = [
        [number, one.at.isoformat(), round(one.seconds, 4), one.attempt, one.error]
        for number, one in enumerate(step.earlier, first)
    ]
    return json.dumps(tries, ensure_ascii=False)


NAMESPACE = {
    "moment": moment,
    "size": size,
    "pill": pill,
    "word": word,
    "short": short,
    "span": span,
    "relative": relative,
    "summary": summary,
    "detail": detail,
    "progress": progress,
    "glance": glance,
    "earlier": earlier,
}
