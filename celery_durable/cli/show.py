"""`durable show`: the whole story of one run."""

from __future__ import annotations

import click

from celery_durable.cli.output import (
    app_of,
    as_json_option,
    choose,
    console_of,
    print_json,
    reporting,
    run_document,
)
from celery_durable.cli.timeline import story
from celery_durable.operations import Runs
from celery_durable.operations.redaction import redacted, redaction_of

_EPILOG = """\b
Examples:
  celery -A proj durable show 3f2a                 the beginning of an id is enough
  celery -A proj durable show 3f2a --json | jq '.steps[] | select(.outcome == "error")'
"""


@click.command(epilog=_EPILOG)
@click.argument("run_id", metavar="RUN")
@as_json_option
@click.pass_context
@reporting
def show(ctx: click.Context, *, run_id: str, as_json: bool) -> None:
    """Show a run: what it waits for, its attempts, steps, children, signals and events, and its error.

    Payloads are measured, not shown; what is shown has passed through the function that durable_redact names.
    """
    app = app_of(ctx)
    operations = Runs(app)
    run = redacted(operations.get(choose(operations, run_id)), redaction_of(app), payloads=True)
    if as_json:
        document = run_document(run)
        parts = {name: document.pop(name) for name in ("attempts", "steps", "children", "signals", "events")}
        print_json({"run": document, **parts})
        return
    console = console_of(ctx)
    for part in story(run, width=console.width, unicode=console.encoding.startswith("utf")):
        console.print(part)
