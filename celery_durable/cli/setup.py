"""`durable init`: create the schema or bring it up to date."""

from __future__ import annotations

from typing import Any

import click

from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting
from celery_durable.operations.stores import store_of
from celery_durable.store.health import HealthStore
from celery_durable.store.url import redact

_EPILOG = """\b
Examples:
  celery -A proj durable init                 before the first worker, and after an upgrade
  celery -A proj durable init --dry-run       what would be done
  celery -A proj durable init --phase pre     before a rolling deploy …
  celery -A proj durable init                 … and after it, when no old worker is left
"""


@click.command(epilog=_EPILOG)
@click.option(
    "--phase",
    type=click.Choice(["pre", "post"]),
    default="post",
    show_default=True,
    help="pre: only what old workers can live with; post: everything.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, do nothing.")
@as_json_option
@click.pass_context
@reporting
def init(ctx: click.Context, *, phase: str, dry_run: bool, as_json: bool) -> None:
    """Create the schema in the result backend's database, or bring it up to date.

    Running it again, or from several machines at once, does no harm.
    """
    store = store_of(app_of(ctx))
    schema = store.settings.schema
    database = HealthStore(store.connections, schema=schema)
    have, missing = database.plan()
    if not as_json:
        console = console_of(ctx)
        console.print(f"Schema {schema!r} in {redact(store.url)}: version {have}", soft_wrap=True)
    if dry_run:
        first_post = next((m.number for m in missing if m.phase == "post"), None)
        todo = [m for m in missing if phase == "post" or first_post is None or m.number < first_post]
    else:
        todo = database.migrate(phase=phase)
    names = [{"number": m.number, "name": m.name, "phase": m.phase} for m in todo]
    now = have if dry_run else max([have, *(m.number for m in todo)])
    if as_json:
        document: dict[str, Any] = {"schema": schema, "from": have, "to": now, "dry_run": dry_run}
        print_json({**document, "applied": [] if dry_run else names, "pending": names if dry_run else []})
        return
    verb = "would apply" if dry_run else "applied"
    for migration in todo:
        console.print(f"  {verb} {migration.number:04} {migration.name} ({migration.phase})")
    if not todo:
        console.print("Nothing to do.")
    elif not dry_run:
        console.print(f"Now at version {now}.")
