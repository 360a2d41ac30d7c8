"""`durable export`: a run with its whole history as one JSON document."""

from __future__ import annotations

import json
from typing import TextIO

import click

from celery_durable.cli.output import app_of, choose, reporting
from celery_durable.operations import Runs

_EPILOG = """\b
Examples:
  celery -A proj durable export 3f2a > run.json
  celery -A proj durable export 3f2a --no-payloads          for a bug report
  celery -A proj durable export 3f2a | jq '.run.steps[] | {key, output}'
"""


@click.command(epilog=_EPILOG)
@click.argument("run_id", metavar="RUN")
@click.option("--payloads/--no-payloads", default=True, help="With arguments, results and values, or not.")
@click.option("-o", "--output", type=click.File("w"), default="-", help="A file instead of standard output.")
@click.option("--json", "as_json", is_flag=True, help="Accepted as everywhere; an export always is JSON.")
@click.pass_context
@reporting
def export(ctx: click.Context, *, run_id: str, payloads: bool, output: TextIO, as_json: bool) -> None:  # noqa: ARG001
    """Print a run with its attempts, steps, events and payloads."""
    operations = Runs(app_of(ctx))
    document = operations.export(choose(operations, run_id), payloads=payloads)
    output.write(json.dumps(document, indent=2) + "\n")
