"""`durable export`: a run with its whole history as one JSON document."""

from __future__ import annotations

import json
from typing import TextIO

import click

from celery_durable.cli.output import app_of, choose, reporting
from celery_durable.operations import Runs
from celery_durable.operations.exports import exported
from celery_durable.operations.redaction import Redaction, redacted, redaction_of
from celery_durable.operations.stores import store_of

_EPILOG = """\b
Examples:
  celery -A proj durable export 3f2a > run.json
  celery -A proj durable export 3f2a --no-payloads          for a bug report
  celery -A proj durable export 3f2a --no-redact            for an archive
  celery -A proj durable export 3f2a | jq '.run.steps[] | {key, output}'
"""


@click.command(epilog=_EPILOG)
@click.argument("run_id", metavar="RUN")
@click.option("--payloads/--no-payloads", default=True, help="With arguments, results and values, or not.")
@click.option("--redact/--no-redact", default=True, help="Passed through durable_redact, or as it is stored.")
@click.option("-o", "--output", type=click.File("w"), default="-", help="A file instead of standard output.")
@click.option("--json", "as_json", is_flag=True, help="Accepted as everywhere; an export always is JSON.")
@click.pass_context
@reporting
def export(
    ctx: click.Context,
    *,
    run_id: str,
    payloads: bool,
    redact: bool,
    output: TextIO,
    as_json: bool,  # noqa: ARG001
) -> None:
    """Print a run with its attempts, steps, events and payloads."""
    app = app_of(ctx)
    operations = Runs(app)
    redaction = redaction_of(app) if redact else Redaction(None)
    run = redacted(operations.get(choose(operations, run_id)), redaction, payloads=True)
    document = exported(app, store_of(app), run, payloads=payloads, redact=redaction.of_export(run.task))
    output.write(json.dumps(document, indent=2) + "\n")
