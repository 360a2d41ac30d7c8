"""`durable prune`: delete runs that ended long ago."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from celery_durable.cli.filtering import progress
from celery_durable.cli.moments import moment
from celery_durable.cli.output import app_of, as_json_option, print_json, reporting
from celery_durable.operations import Runs

_EPILOG = """\b
Examples:
  celery -A proj durable prune --dry-run
  celery -A proj durable prune --older-than 30d
"""


def _age(_ctx: click.Context, _param: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    age = moment(value)
    if isinstance(age, datetime):
        raise click.BadParameter(f"{value!r} is a moment; say how long ago: 90s, 10m, 2h, 30d or 4w")
    return age


@click.command(epilog=_EPILOG)
@click.option(
    "--older-than",
    callback=_age,
    metavar="AGE",
    help="How long ago they ended; durable_retention, else result_expires, by default.",
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@as_json_option
@click.pass_context
@reporting
def prune(ctx: click.Context, *, older_than: timedelta | None, dry_run: bool, as_json: bool) -> None:
    """Delete final runs with all that belongs to them, whole trees at a time.

    Workers do this themselves with `celery beat` (its task celery.backend_cleanup). A tree with a run that is
    not over, or that ended later, stays.
    """
    operations = Runs(app_of(ctx))
    with progress("Deleting", hidden=as_json or dry_run) as shown:
        runs = operations.prune(older_than=older_than, dry_run=dry_run, progress=shown)
    if as_json:
        print_json({"dry_run": dry_run, "runs": runs})
    else:
        click.echo(f"{runs:,} runs would be deleted." if dry_run else f"{runs:,} runs deleted.")
