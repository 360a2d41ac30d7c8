"""Runs in words: how long, when, and what a run is doing or waiting for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.run import RunState

if TYPE_CHECKING:
    from datetime import datetime, tzinfo

    from celery_durable.store.views import RunSummary

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def span(seconds: float) -> str:
    """Return a length of time in at most two units: `12 ms`, `3.4 s`, `2 min 5 s`, `3 d 4 h`."""
    if seconds < 0.9995:  # noqa: PLR2004  (from here on it would round to 1000 ms)
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 9.95:  # noqa: PLR2004  (a decimal says something below ten)
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, small_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {small_name}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"


def relative(when: datetime, now: datetime) -> str:
    """Return a moment as seen from `now`: `in 5 s`, `3 min 2 s ago`."""
    seconds = (when - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else f"{span(abs(seconds))} ago"


def clock(when: datetime, now: datetime, zone: tzinfo | None = None) -> str:
    """Return a moment as people write it, the day only if it is not today; `zone` None is the local one."""
    local = when.astimezone(zone)
    if local.date() == now.astimezone(zone).date():
        return f"{local:%H:%M:%S}"
    return f"{local:%Y-%m-%d %H:%M:%S}"


def summary(run: RunSummary, zone: tzinfo | None = None, *, max_retries: int | None = None) -> str:
    """Return what a run is doing, waits for and until when, or how it ended: words to follow its state."""
    if run.stored_state is RunState.PENDING:
        return _rolling_back(run) + _pending(run)
    if run.stored_state is RunState.WAITING:
        return _rolling_back(run) + _waiting(run, zone, max_retries)
    if run.state in (RunState.RUNNING, RunState.CANCELLING):
        return _running(run)
    return _final(run)


def _rolling_back(run: RunSummary) -> str:
    return f"rolls back, then it is {run.ending}; " if run.state is RunState.CANCELLING else ""


def _pending(run: RunSummary) -> str:
    words = "waits for a worker"
    if run.published_at is None:
        words = "waits for the keeper to send its message"
    elif run.published_at <= run.now:
        words += f", message sent {relative(run.published_at, run.now)}"
    if run.attempt == 0 and run.expires_at is not None:
        words += f"; expires {relative(run.expires_at, run.now)}"
    return words


_WAITS_FOR = {
    "timer": "sleeps",
    "sleep": "sleeps",
    "children": "waits for its children",
    "turn": "waits for its turn among its siblings",
    "slot": "waits for a slot",
    "replaced": "was replaced: it ends as the task in its place does",
}


def until(run: RunSummary, zone: tzinfo | None = None) -> str:
    """Return until when a run waits, in words to follow what it waits for."""
    if run.due is None:
        return ""
    if run.due <= run.now:
        return f"; due {relative(run.due, run.now)}, the keeper wakes it"
    return f" until {clock(run.due, run.now, zone)} ({relative(run.due, run.now)})"


def _waiting(run: RunSummary, zone: tzinfo | None, max_retries: int | None) -> str:
    waits = until(run, zone)
    if run.reason == "retry":
        after = f" after {run.error}" if run.error else ""
        of = "" if max_retries is None else f" of {max_retries}"
        return f"waits for a retry{waits}, retry {run.retries}{of}{after}"
    if run.reason == "version":
        return f"waits for a worker of version {run.version}; the next try {waits.lstrip('; ')}"
    if run.reason == "timer" and run.attempt == 0:
        return f"is not due yet: waits{waits}"
    if run.reason == "signal":
        return f"waits for the signal {run.awaits!r}{waits}" if run.awaits else f"waits for a signal{waits}"
    return _WAITS_FOR.get(run.reason or "", f"waits ({run.reason})") + waits


def _running(run: RunSummary) -> str:
    if run.orphaned:
        return f"its worker {run.hostname} is gone; the leader hands it to another one"
    words = f"rolls back, then it is {run.ending}," if run.state is RunState.CANCELLING else "runs"
    if run.hostname:
        words += f" on {run.hostname}, pid {run.pid}"
    if run.claimed_at is not None:
        words += f", for {span((run.now - run.claimed_at).total_seconds())}"
    if run.cancel_requested and run.state is RunState.RUNNING:
        words += "; asked to stop, does so at its next step"
    return words


_ENDED_BY = {
    "cancelled": "by an operator",
    "revoked": "by a revoke",
    "expired": "because nobody took it before it expired",
    "deadline": "at its deadline",
    "parent": "with its parent",
    "ignored": "because its task raised Ignore",
}


def _final(run: RunSummary) -> str:
    words = relative(run.finished_at, run.now) if run.finished_at is not None else ""
    if run.state is RunState.SUCCEEDED and run.finished_at is not None and run.started_at is not None:
        return f"{words}, {span((run.finished_at - run.started_at).total_seconds())} after its start"
    if run.state is RunState.CANCELLED and run.reason:
        return f"{words} {_ENDED_BY.get(run.reason, f'({run.reason})')}"
    if run.reason == "rollback":
        return (
            f"{words}, not all of it taken back: {run.error or 'its worker was lost'}; resume tries the rest"
        )
    if run.reason == "exhausted":
        words += f", exhausted: it lost its worker {run.recoveries} times"
        return words + (", and was taken back" if run.ending else "")
    if run.ending is not None:
        words += ", taken back"
    if run.state is RunState.FAILED and run.error:
        words += f": {run.error}"
    return words
