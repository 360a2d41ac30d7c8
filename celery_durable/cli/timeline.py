"""A run's story as tables: attempts, steps with bars, events, the error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from celery_durable.cli.listing import STYLES
from celery_durable.operations.wording import clock, relative, span, summary
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rich.console import RenderableType

    from celery_durable.operations import EventView, RunView, StepView

_NARROW = 80
_FAILURE = 400  # HTTP statuses from here on say that it did not work
_BAR = 24
_OUTCOMES = {
    "ok": "green",
    "succeeded": "green",
    "error": "red",
    "failed": "red",
    "lost": "red",
    "trying": "yellow",
    "retry": "yellow",
    "started": "yellow",
    "discarded": "dim",
    "slept": "green",
    "sleeps": "blue",
    "waiting": "blue",
}


def story(run: RunView, *, width: int, unicode: bool = True) -> Iterator[RenderableType]:
    """Yield a run from its headline to its traceback, fit for a terminal of `width` columns."""
    yield Text.assemble((run.id, "bold"), "  ", run.task)
    yield Text.assemble((str(run.state), STYLES[run.state]), "  ", summary(run))
    yield Text(" · ".join(_facts(run)), "dim")
    if run.attempts:
        yield Text("\nAttempts", "bold")
        yield _attempts(run, narrow=width < _NARROW)
    if run.steps:
        yield Text("\nSteps", "bold")
        yield _steps(run, narrow=width < _NARROW, block="█" if unicode else "#")
    if run.children:
        yield Text(f"\nChildren ({run.children[0].siblings:,})", "bold")
        yield _children(run)
    if run.signals:
        yield Text("\nSignals", "bold")
        yield _signals(run)
    calls = [event for event in run.events if event.kind == "call"]
    if calls:
        yield Text("\nExternal calls", "bold")
        yield _calls(run, calls)
    if len(calls) < len(run.events):
        yield Text("\nEvents", "bold")
        yield _events(run)
    if run.traceback and run.state.value != "succeeded":
        yield Text("\nTraceback", "bold")
        yield Text(run.traceback.rstrip())


def _facts(run: RunView) -> Iterator[str]:
    yield f"Celery says {run.celery_state}"
    yield f"queue {run.queue}"
    yield f"created {clock(run.created_at, run.now)} ({relative(run.created_at, run.now)})"
    for name in ("retries", "recoveries", "generation", "priority", "version", "parent", "root", "group"):
        value = getattr(run, name)
        if value and value != run.id:
            yield f"{name} {value}"
    if run.forked_from:
        yield f"fork of {run.forked_from}"
    if run.forks:
        yield f"forked as {', '.join(run.forks)}"
    if run.slot:
        limits = [f"{run.slot_limit} at a time"] if run.slot_limit else []
        if run.slot_rate and run.slot_period:
            limits.append(f"{run.slot_rate} in {span(run.slot_period.total_seconds())}")
        yield f"concurrency key {run.slot!r}, {', '.join(limits)}"
    for key in run.keys:
        until = "" if key.expires_at is None else f" until {clock(key.expires_at, run.now)}"
        yield f"{key.kind} key {key.key!r}{until}"
    if run.result_bytes is not None:
        yield f"result {run.result_bytes:,} bytes"
    if run.tags:
        yield f"tags {run.tags}"


def _grid(*names: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        justify: Any = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name in right or name == "OUTCOME")
    return table


def _attempts(run: RunView, *, narrow: bool) -> Table:
    names = (
        ("#", "WORKER", "TOOK", "OUTCOME", "ERROR")
        if narrow
        else ("#", "WORKER", "PID", "STARTED", "TOOK", "OUTCOME", "ERROR")
    )
    table = _grid(*names, right=("#", "PID", "TOOK"))
    for attempt in run.attempts:
        outcome = attempt.outcome or ("worker gone" if run.orphaned else "executing")
        style = _OUTCOMES.get(outcome, "")
        middle = () if narrow else (str(attempt.pid), clock(attempt.started_at, run.now))
        table.add_row(
            str(attempt.number),
            Text(attempt.hostname),
            *middle,
            span(attempt.seconds),
            Text(outcome, style),
            Text(attempt.error or ""),
        )
    return table


def _steps(run: RunView, *, narrow: bool, block: str) -> Table:
    names = (
        ("STEP", "OUTCOME", "TRIES", "TOOK", "ERROR")
        if narrow
        else ("STEP", "OUTCOME", "TRIES", "ATTEMPT", "TOOK", "", "ERROR")
    )
    table = _grid(*names, right=("TRIES", "ATTEMPT", "TOOK"))
    longest = max(step.seconds for step in run.steps)
    for step in run.steps:
        outcome, note = _outcome(step, run.now)
        style = _OUTCOMES.get(outcome, "")
        row: list[RenderableType] = [Text(step.key), Text(outcome, style), str(step.tries)]
        if narrow:
            row += [span(step.seconds), Text(note)]
        else:
            bar = Text(bar_of(step, longest, block), style)
            row += [str(step.attempt), span(step.seconds), bar, Text(note)]
        table.add_row(*row)
    return table


def _outcome(step: StepView, now: datetime) -> tuple[str, str]:
    """Return in a word and a remark how a step ended, or what a wait is waiting for."""
    if step.due is None or step.outcome != "waiting":
        return step.outcome, step.error or ""
    until = f"until {clock(step.due, now)} ({relative(step.due, now)})"
    if step.kind == "sleep":
        return ("sleeps", until) if step.due > now else ("slept", until)
    return step.outcome, until


def bar_of(step: StepView, longest: float, block: str) -> str:
    """Return a bar as long as a step's share of the longest one, at least one block."""
    share = step.seconds / longest if longest > 0 else 0.0
    return block * max(1, round(share * _BAR))


def _children(run: RunView) -> Table:
    table = _grid("RUN", "TASK", "STATE")
    for child in run.children:
        words = child.state if child.reason is None else f"{child.state} ({child.reason})"
        table.add_row(Text(child.id), Text(child.task), Text(words, STYLES[RunState(child.state)]))
    if len(run.children) < run.children[0].siblings:
        table.add_row("…", "", "")
    return table


def _signals(run: RunView) -> Table:
    table = _grid("SENT", "SIGNAL", "BY", "BYTES", "RECEIVED BY", right=("BYTES",))
    for signal in run.signals:
        sent = clock(signal.sent_at, run.now)
        size, by = f"{signal.payload_bytes:,}", Text(signal.actor or "")
        table.add_row(sent, Text(signal.name), by, size, Text(signal.taken_by or "nobody yet"))
    return table


def _events(run: RunView) -> Table:
    table = _grid("AT", "EVENT", "BY", "DETAIL")
    for event in run.events:
        if event.kind != "call":
            table.add_row(clock(event.at, run.now), event.kind, event.actor or "keeper", Text(_detail(event)))
    return table


def _calls(run: RunView, calls: list[EventView]) -> Table:
    table = _grid("AT", "STEP", "CALL", "ANSWER", "TOOK", right=("TOOK",))
    for event in calls:
        call = event.detail
        failed = call.get("status") is None
        answer = str(call.get("error") or "none" if failed else call["status"])
        table.add_row(
            clock(event.at, run.now),
            Text(str(call.get("step", ""))),
            Text(f"{call.get('method', '')} {call.get('url', '')}".strip()),
            Text(answer, "red" if failed or call["status"] >= _FAILURE else "green"),
            "" if call.get("seconds") is None else span(call["seconds"]),
        )
    return table


def _detail(event: EventView) -> str:
    known = {
        name: value
        for name, value in event.detail.items()
        if name != "operation" and value not in (None, [], "")
    }
    return ", ".join(
        f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in known.items()
    )
