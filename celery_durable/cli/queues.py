"""`durable queues`: the queues of a Postgres broker."""

from __future__ import annotations

import click
from rich.table import Table

from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting
from celery_durable.operations import queues as operations
from celery_durable.operations.wording import span

_EPILOG = """\b
Examples:
  celery -A proj durable queues
  celery -A proj durable queues --json | jq '.queues[] | select(.ready > 1000)'
  celery -A proj durable queues --redrive video    put the dead letters of `video` back into it
"""


@click.command(epilog=_EPILOG)
@click.option("--redrive", metavar="QUEUE", help="Put what is in QUEUE.dead back into QUEUE.")
@as_json_option
@click.pass_context
@reporting
def queues(ctx: click.Context, *, redrive: str | None, as_json: bool) -> None:
    """Show the queues of a durable+postgresql:// broker: what waits, what is with a worker, who consumes."""
    app = app_of(ctx)
    if redrive is not None:
        moved = operations.redrive(app, redrive)
        if as_json:
            print_json({"queue": redrive, "redriven": moved})
        else:
            click.echo(f"{moved} messages are back in {redrive}")
        return
    found = operations.queues_of(app)
    if as_json:
        print_json({"queues": found})
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("queue")
    for heading in ("waiting", "held", "consumers", "oldest"):
        table.add_column(heading, justify="right")
    for one in found:
        oldest = "" if one.waiting is None else span(one.waiting)
        table.add_row(one.name, f"{one.ready:,}", f"{one.held:,}", str(one.consumers), oldest)
    console_of(ctx).print(table)
