"""A run's story as tables: attempts, steps with bars, events, the error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from celery_durable.cli.listing import STYLES
from celery_durable.operations.calls import KIND, calls_of
from celery_durable.operations.compensations import rollback_of
from celery_durable.operations.reasons import why_so_many_tries
from celery_durable.operations.wording import clock, relative, span, summary
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from rich.console import RenderableType

    from celery_durable.operations import EventView, RunView, StepView
    from celery_durable.operations.calls import CallView
    from celery_durable.operations.compensations import RollbackView
    from celery_durable.operations.reasons import Failures

_NARROW = 80
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
    for failures in why_so_many_tries(run.steps):
        yield _failures(failures)
    rollback = rollback_of(run)
    if rollback is not None:
        yield Text("\nCompensations", "bold")
        yield Text(rollback.sentence)
        yield _compensations(run, rollback)
    if run.children:
        yield Text(f"\nChildren ({run.children[0].siblings:,})", "bold")
        yield _children(run)
    if run.signals:
        yield Text("\nSignals", "bold")
        yield _signals(run)
    calls = calls_of(run)
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
    if run.deadline is not None:
        yield f"deadline {clock(run.deadline, run.now)} ({relative(run.deadline, run.now)})"
    for name in ("retries", "recoveries", "generation", "priority", "version", "parent", "root", "group"):
        value = getattr(run, name)
        if value and value != run.id:
            yield f"{name} {value}"
    if run.forked_from:
        yield f"fork of {run.forked_from}"
    if run.forks:
        yield f"forked as {', '.join(run.forks)}"
    if run.slot:
        yield f"concurrency key {run.slot!r}, {', '.join(_limits(run))}"
    for key in run.keys:
        until = "" if key.expires_at is None else f" until {clock(key.expires_at, run.now)}"
        yield f"{key.kind} key {key.key!r}{until}"
    if run.result_bytes is not None:
        yield f"result {run.result_bytes:,} bytes"
    if run.tags:
        yield f"tags {run.tags}"


def _limits(run: RunView) -> Iterator[str]:
    if run.slot_limit:
        yield f"{run.slot_limit} at a time"
    if run.slot_rate and run.slot_period:
        yield f"{run.slot_rate} in {span(run.slot_period.total_seconds())}"


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
        if event.kind != KIND:
            table.add_row(clock(event.at, run.now), event.kind, event.actor or "keeper", Text(_detail(event)))
    return table


def _failures(failures: Failures) -> Text:
    reasons = ", ".join(f"{count} times {reason}" for count, reason in failures.reasons[:3])
    more = len(failures.reasons) - 3
    rest = f" and {more} other reasons" if more > 0 else ""
    return Text(f"{failures.step} failed {failures.count} times: {reasons}{rest}", "yellow")


def _compensations(run: RunView, rollback: RollbackView) -> Table:
    table = _grid("COMPENSATION", "OUTCOME", "TRIES", "AT", "ERROR", right=("TRIES",))
    words = {"left": "not made" if rollback.over else "to come", "trying": "tried again"}
    styles = {"made": "green", "failed": "red", "trying": "yellow", "left": "dim"}
    for one in rollback.compensations:
        table.add_row(
            Text(one.name),
            Text(words.get(one.outcome, one.outcome), styles[one.outcome]),
            str(one.tries or ""),
            "" if one.at is None else clock(one.at, run.now),
            Text(one.error or ""),
        )
    return table


def _calls(run: RunView, calls: list[CallView]) -> Table:
    table = _grid("AT", "STEP", "CALL", "ANSWER", "TOOK", right=("TOOK",))
    for call in calls:
        missing = call.error or ("none" if call.kept else "not kept")
        answer = missing if call.status is None else str(call.status)
        table.add_row(
            clock(call.at, run.now),
            Text(call.step),
            Text(f"{call.method} {call.url}".strip()),
            Text(answer, "red" if call.failed else "green"),
            "" if call.seconds is None else span(call.seconds),
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
