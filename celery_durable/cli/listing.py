"""`durable runs`: list runs, count them, watch them."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from rich.live import Live
from rich.table import Table
from rich.text import Text

from celery_durable.cli.moments import moment
from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting, short
from celery_durable.operations import Runs
from celery_durable.operations.redaction import redaction_of, summarised
from celery_durable.operations.wording import relative, summary
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from celery_durable.operations import Count, Page

STYLES = {
    RunState.PENDING: "cyan",
    RunState.RUNNING: "bold blue",
    RunState.WAITING: "yellow",
    RunState.CANCELLING: "magenta",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "bold red",
    RunState.CANCELLED: "magenta",
}
_NARROW = 100
_EVERY = 2.0

_EPILOG = """\b
Examples:
  celery -A proj durable runs
  celery -A proj durable runs --state failed --since 2h
  celery -A proj durable runs --reason exhausted          the dead letters
  celery -A proj durable runs --task proj.tasks.import_ --errors
  celery -A proj durable runs --watch
  celery -A proj durable runs --errors --json | jq -r '.runs[].id'
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--state", multiple=True, type=click.Choice([str(state) for state in RunState]), help="May be repeated."
)
@click.option("--task", help="Full name of the task.")
@click.option("--reason", help="Why it waits or ended: retry, timer, exhausted, cancelled, revoked, expired.")
@click.option("--since", type=moment, metavar="WHEN", help="Created then or later: 10m, 2h, 3d, or ISO 8601.")
@click.option("--until", type=moment, metavar="WHEN", help="Created before then.")
@click.option("--worker", help="Node name of the worker that executes it now.")
@click.option(
    "--errors/--no-errors", "has_error", default=None, help="Failed or waiting for a retry, or not."
)
@click.option(
    "-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many at most."
)
@click.option("--before", type=int, help="Continue a list: the number it ended with.")
@click.option("--counts", is_flag=True, help="Only count runs, by state and reason.")
@click.option("--watch", is_flag=True, help="Show the list again every 2 s, until Ctrl-C.")
@as_json_option
@click.pass_context
@reporting
def runs(
    ctx: click.Context, /, *, state: tuple[str, ...], counts: bool, watch: bool, as_json: bool, **wanted: Any
) -> None:
    """List runs, the newest first."""
    app = app_of(ctx)
    operations, redaction = Runs(app), redaction_of(app)

    def found() -> Page:
        page = operations.list(**wanted)
        return replace(page, runs=tuple(summarised(run, redaction) for run in page.runs))

    wanted["state"] = state or None
    if watch and (as_json or counts or not sys.stdout.isatty()):
        raise click.UsageError("--watch needs a terminal, and neither --json nor --counts")
    if counts:
        _counts(ctx, operations.counts(), as_json=as_json)
    elif as_json:
        page = found()
        print_json({"runs": page.runs, "next": page.next})
    elif watch:
        _watch(console_of(ctx), found)
    else:
        console = console_of(ctx)
        page = found()
        console.print(_table(page, console) if page.runs else "No run matches.")
        if page.next is not None:
            console.print(f"More: add --before {page.next}", style="dim")


def _watch(console: Console, found: Callable[[], Page]) -> None:
    interrupted = threading.Event()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        try:
            while not interrupted.wait(_EVERY if live.renderable else 0):
                live.update(_table(found(), console), refresh=True)
        except KeyboardInterrupt:
            return


def _table(page: Page, console: Console) -> Table:
    narrow = console.width < _NARROW
    shown = short([run.id for run in page.runs]) if console.is_terminal else {}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("RUN", no_wrap=bool(shown))
    if not narrow:
        table.add_column("TASK", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    table.add_column("WHAT", overflow="fold")
    if not narrow:
        table.add_column("CREATED", no_wrap=True, justify="right")
    for run in page.runs:
        state = Text(str(run.state), STYLES[run.state])
        words = Text(summary(run))
        if narrow:
            table.add_row(shown.get(run.id, run.id), state, Text.assemble((f"{run.task}: ", "dim"), words))
        else:
            created = relative(run.created_at, run.now)
            table.add_row(shown.get(run.id, run.id), Text(run.task), state, words, created)
    return table


def _counts(ctx: click.Context, found: Any, *, as_json: bool) -> None:
    counted: list[Count] = list(found)
    if as_json:
        print_json({"counts": counted, "total": sum(count.runs for count in counted)})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("STATE", "REASON"):
        table.add_column(name)
    table.add_column("RUNS", justify="right")
    for count in counted:
        table.add_row(Text(count.state, STYLES[RunState(count.state)]), count.reason or "", f"{count.runs:,}")
    console_of(ctx).print(table if counted else "There are no runs.")
