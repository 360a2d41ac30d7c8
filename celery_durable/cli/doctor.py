"""`durable doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting
from celery_durable.operations.doctor import examine

_EPILOG = """\b
Examples:
  celery -A proj durable doctor
  celery -A proj durable doctor --json | jq '.findings[] | select(.level != "ok")'
  celery -A proj durable doctor >/dev/null || page-somebody
"""
_MARKS = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "error": ("FAIL", "bold red")}


@click.command(epilog=_EPILOG)
@as_json_option
@click.pass_context
@reporting
def doctor(ctx: click.Context, *, as_json: bool) -> None:
    """Examine database, schema, workers, runs and broker, and say what to do.

    It changes nothing, and works with a role that may only read. Exit status 1 if something is an error.
    """
    report = examine(app_of(ctx))
    if as_json:
        print_json({"ok": report.ok, "findings": report.findings})
    else:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in report.findings:
            mark, style = _MARKS[finding.level]
            words = Text(finding.message)
            if finding.advice is not None:
                words.append(f"\n→ {finding.advice}", style="" if finding.level != "ok" else "dim")
            table.add_row(Text(mark, style), finding.check, words)
        console_of(ctx).print(table)
    if not report.ok:
        raise click.exceptions.Exit(1)
