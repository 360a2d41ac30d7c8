"""`durable signal`: send a run what it waits for."""

from __future__ import annotations

import json

import click

from celery_durable.cli.output import app_of, as_json_option, choose, print_json, reporting
from celery_durable.operations import Runs

_EPILOG = """\b
Examples:
  celery -A proj durable signal 3f2a approved
  celery -A proj durable signal 3f2a approved --payload '{"by": "ada", "limit": 100}'
  celery -A proj durable signal 3f2a paid --payload 42 --idempotency-key invoice-17
"""


@click.command(epilog=_EPILOG)
@click.argument("run_id", metavar="RUN")
@click.argument("name", metavar="NAME")
@click.option(
    "--payload", default="null", metavar="JSON", help="What wait_for_signal() returns; null if left out."
)
@click.option("--idempotency-key", metavar="KEY", help="Deliver at most one signal of this name and key.")
@click.option("--as", "actor", metavar="NAME", help="Who; the user of this shell by default.")
@as_json_option
@click.pass_context
@reporting
def signal(
    ctx: click.Context,
    *,
    run_id: str,
    name: str,
    payload: str,
    idempotency_key: str | None,
    actor: str | None,
    as_json: bool,
) -> None:
    """Send a signal to a run that waits for it, or will.

    The run receives signals of one name in the order in which they were sent.
    """
    try:
        value = json.loads(payload)
    except ValueError as error:
        message = f"--payload is not JSON: {error}. A text needs its quotes: --payload '\"yes\"'"
        raise click.BadParameter(message) from error
    operations = Runs(app_of(ctx))
    chosen = choose(operations, run_id)
    new = operations.signal(chosen, name, value, idempotency_key=idempotency_key, actor=actor)
    if as_json:
        print_json({"id": chosen, "name": name, "delivered": new})
    else:
        click.echo(f"{chosen}  {name}: " + ("delivered" if new else "was delivered before, with this key"))
