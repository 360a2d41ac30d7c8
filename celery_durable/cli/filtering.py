"""Operations in bulk on the command line: the options that choose runs, and what is shown meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from celery_durable.cli.moments import moment
from celery_durable.operations import Filter
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OPTIONS = (
    click.option(
        "--state",
        multiple=True,
        type=click.Choice([str(state) for state in RunState]),
        help="May be repeated.",
    ),
    click.option("--task", help="Full name of the task."),
    click.option("--why", help="Why they wait or ended: exhausted, retry, timer, revoked, expired, …"),
    click.option("--since", type=moment, metavar="WHEN", help="Created then or later: 10m, 3d, ISO 8601."),
    click.option("--until", type=moment, metavar="WHEN", help="Created before then."),
    click.option("--dry-run", is_flag=True, help="Say which runs match, change nothing."),
)


def bulk_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a filter; the command gets it as `wanted`, None when no option was given."""

    @wraps(command)
    def with_filter(*args: Any, ids: tuple[str, ...], dry_run: bool, **options: Any) -> None:
        given = {name: options.pop(name) for name in ("state", "task", "why", "since", "until")}
        chosen = any(given.values())
        if chosen and ids:
            raise click.UsageError("Name runs by their ids or by options that choose them, not both")
        if not chosen and not ids:
            raise click.UsageError(
                "Which runs? Name their ids, or choose them with --state, --task, --why, --since or --until"
            )
        if dry_run and ids:
            raise click.UsageError("--dry-run says which runs the options choose; these are named already")
        wanted = Filter(
            states=[RunState(state) for state in given["state"]] or None,
            task=given["task"],
            reason=given["why"],
            since=given["since"],
            until=given["until"],
        )
        command(*args, ids=ids, wanted=wanted if chosen else None, dry_run=dry_run, **options)

    decorated: Callable[..., None] = with_filter
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@contextmanager
def progress(words: str, *, total: int | None = None, hidden: bool) -> Iterator[Callable[[int], None]]:
    """Yield what to call with the number of runs done so far; it is shown on a terminal's standard error."""
    console = Console(stderr=True)
    columns = (TextColumn(words), BarColumn(), MofNCompleteColumn())
    silent = hidden or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(words, total=total)
        yield lambda done: bar.update(task, completed=done)
