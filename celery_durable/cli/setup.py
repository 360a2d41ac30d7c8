"""`durable init`: create the schema or bring it up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli.output import app_of, as_json_option, console_of, print_json, reporting
from celery_durable.operations.queues import broker_of
from celery_durable.operations.stores import store_of
from celery_durable.store.health import HealthStore
from celery_durable.store.url import redact

if TYPE_CHECKING:
    from celery_durable.store import Store

_EPILOG = """\b
Examples:
  celery -A proj durable init                 before the first worker, and after an upgrade
  celery -A proj durable init --dry-run       what would be done
  celery -A proj durable init --phase pre     before a rolling deploy …
  celery -A proj durable init                 … and after it, when no old worker is left
  celery -A proj durable init --database billing   a user's database, for transaction steps
  celery -A proj durable init --broker             the broker's database, where it is another one
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
@click.option(
    "--database",
    metavar="NAME|URL",
    help="Create the table of transaction steps in another database: a name in durable_databases, or a URL.",
)
@click.option("--broker", is_flag=True, help="The broker's database instead of the result backend's.")
@as_json_option
@click.pass_context
@reporting
def init(
    ctx: click.Context, *, phase: str, dry_run: bool, database: str | None, broker: bool, as_json: bool
) -> None:
    """Create the schema in the result backend's database, or bring it up to date.

    Running it again, or from several machines at once, does no harm.
    """
    app = app_of(ctx)
    if broker:
        with broker_of(app) as place:
            health = HealthStore(place.connections, schema=place.options.schema)
            _install(ctx, health, place.url, phase=phase, dry_run=dry_run, as_json=as_json)
        return
    store = store_of(app)
    if database is not None:
        _elsewhere(ctx, store, database, dry_run=dry_run, as_json=as_json)
        return
    health = HealthStore(store.connections, schema=store.settings.schema)
    _install(ctx, health, store.url, phase=phase, dry_run=dry_run, as_json=as_json)


def _install(
    ctx: click.Context, health: HealthStore, url: str, *, phase: str, dry_run: bool, as_json: bool
) -> None:
    schema = health.schema
    have, missing = health.plan()
    if not as_json:
        console = console_of(ctx)
        console.print(f"Schema {schema!r} in {redact(url)}: version {have}", soft_wrap=True)
    if dry_run:
        first_post = next((m.number for m in missing if m.phase == "post"), None)
        todo = [m for m in missing if phase == "post" or first_post is None or m.number < first_post]
    else:
        todo = health.migrate(phase=phase)
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


def _elsewhere(ctx: click.Context, store: Store, database: str, *, dry_run: bool, as_json: bool) -> None:
    """Set up a user's database for transaction steps."""
    url = redact(store.url_of(database))
    if not dry_run:
        store.transactions(database).install()
    if as_json:
        print_json(
            {"database": url, "table": f"{store.settings.schema}.transaction_step", "dry_run": dry_run}
        )
        return
    verb = "Would create" if dry_run else "There is now"
    console_of(ctx).print(f"{verb} {store.settings.schema}.transaction_step in {url}", soft_wrap=True)
