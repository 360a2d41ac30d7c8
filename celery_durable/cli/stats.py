"""`durable stats`: states, queues, workers, and each task's last hour."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from celery_durable.cli.listing import STYLES
from celery_durable.cli.moments import moment
from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting
from celery_durable.operations import Runs
from celery_durable.operations.wording import span
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from celery_durable.operations import Stats

_EPILOG = """\b
Examples:
  celery -A proj durable stats
  celery -A proj durable stats --window 1d
  celery -A proj durable stats --json | jq '.tasks[] | select(.failed > 0)'
"""


def _window(_ctx: click.Context, _param: click.Parameter, value: str) -> timedelta:
    window = moment(value)
    if isinstance(window, datetime):
        raise click.BadParameter(f"{value!r} is a moment; say how long: 90s, 10m, 2h or 1d")
    return window


@click.command(epilog=_EPILOG)
@click.option("--window", callback=_window, default="1h", show_default=True, help="How far back tasks count.")
@as_json_option
@click.pass_context
@reporting
def stats(ctx: click.Context, *, window: timedelta, as_json: bool) -> None:
    """Count runs by state, what waits in each queue, and what each task did of late."""
    found = Runs(app_of(ctx)).stats(window=window)
    if as_json:
        print_json(vars(found))
        return
    console = console_of(ctx)
    for part in _parts(found):
        console.print(part)


def _parts(found: Stats) -> Iterator[RenderableType]:
    yield Text("Runs", "bold")
    table = _grid("STATE", "REASON", "RUNS")
    for count in found.states:
        table.add_row(Text(count.state, STYLES[RunState(count.state)]), count.reason or "", f"{count.runs:,}")
    yield table if found.states else Text("None.")
    yield Text("\nQueues", "bold")
    table = _grid("QUEUE", "PENDING", "OLDEST")
    for queue in found.queues:
        table.add_row(Text(queue.queue), f"{queue.runs:,}", span(queue.seconds or 0))
    yield table if found.queues else Text("Nothing waits for a worker.")
    if found.slots:
        yield Text("\nConcurrency keys", "bold")
        table = _grid("KEY", "RUNNING", "WAITING")
        for slot in found.slots:
            table.add_row(Text(slot.slot), f"{slot.running:,}", f"{slot.waiting:,}")
        yield table
    yield Text("\nWorkers", "bold")
    table = _grid("WORKER", "PID", "RUNS", "LAST HEARTBEAT")
    for worker in found.workers:
        table.add_row(Text(worker.hostname), str(worker.pid), str(worker.runs), f"{span(worker.silent)} ago")
    yield table if found.workers else Text("No worker is alive.")
    yield Text(f"\nTasks, the last {span(found.window_seconds)}", "bold")
    table = _grid("TASK", "SUCCEEDED", "FAILED", "CANCELLED", "MEDIAN", "95 %")
    for task in found.tasks:
        table.add_row(
            Text(task.task),
            f"{task.succeeded:,}",
            Text(f"{task.failed:,}", "red" if task.failed else ""),
            f"{task.cancelled:,}",
            _took(task.median_seconds),
            _took(task.slow_seconds),
        )
    yield table if found.tasks else Text("No run ended.")


def _took(seconds: float | None) -> str:
    return "" if seconds is None else span(seconds)


def _grid(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name == "REASON" else "right")
    return table
