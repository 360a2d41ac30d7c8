"""`durable fork`: a new run with the checkpoints another one stored before a step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli.output import app_of, as_json_option, choose, print_json, reporting
from celery_durable.operations import Runs
from celery_durable.serialization import JsonSerializer, ValueCodec

if TYPE_CHECKING:
    from celery_durable.operations import Fork

_EPILOG = """\b
Examples:
  celery -A proj durable fork 3f2a --from charge --dry-run      which steps would run again?
  celery -A proj durable fork 3f2a --from charge
  celery -A proj durable fork 3f2a --set 'rate={"~decimal": "1.19"}'
  celery -A proj durable fork 3f2a --args '[42]' --kwargs '{"express": true}'
"""


class Json(click.ParamType):  # type: ignore[type-arg]  # (not generic before click 8.4)
    """A JSON document of one kind."""

    name = "json"

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the document stands for; a wrong one is wrong usage."""
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)
        if not isinstance(found, self._kind):
            self.fail(f"{value!r} is no JSON {'array' if self._kind is list else 'object'}", param, ctx)
        return found


class Override(click.ParamType):  # type: ignore[type-arg]  # (as above)
    """`STEP=VALUE`, the value as JSON in the form that an export shows it in."""

    name = "step=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the step's key and its value."""
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not STEP=VALUE", param, ctx)
        try:
            json.loads(text)
        except ValueError as error:
            self.fail(f"The value of {key!r} is not JSON (text needs its quotes): {error}", param, ctx)
        return key, ValueCodec(JsonSerializer()).decode(text.encode())


@click.command(epilog=_EPILOG)
@click.argument("run_id", metavar="RUN")
@click.option("--from", "from_step", metavar="STEP", help="Key of the first step to run again.")
@click.option("--set", "overrides", type=Override(), multiple=True, help="Another value for a stored step.")
@click.option("--args", type=Json(list), help="Other positional arguments, a JSON array.")
@click.option("--kwargs", type=Json(dict), help="Other keyword arguments, a JSON object.")
@click.option("--dry-run", is_flag=True, help="Say which steps would run again, start nothing.")
@click.option("--reason", help="Why; kept with both runs.")
@click.option("--as", "actor", metavar="NAME", help="Who; the user of this shell by default.")
@as_json_option
@click.pass_context
@reporting
def fork(
    ctx: click.Context,
    /,
    *,
    run_id: str,
    overrides: tuple[tuple[str, Any], ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Start a new run that begins with the checkpoints of RUN before a step.

    Without --from it begins at the first step that --set names, else at the very beginning. RUN itself stays
    as it is. `show` lists step keys and, of both runs, where they come from.
    """
    operations = Runs(app_of(ctx))
    chosen = choose(operations, run_id)
    try:
        forked = operations.fork(chosen, overrides=dict(overrides), **options)
    except TypeError as error:  # as a call of the task says it
        message = f"The task does not take these arguments: {error}"
        raise click.UsageError(message) from error
    if as_json:
        print_json({**vars(forked), "dry_run": forked.id is None})
    else:
        _say(forked)


def _say(forked: Fork) -> None:
    verb = "would be kept" if forked.id is None else "kept"
    if forked.id is not None:
        late = "" if forked.published else "  (the broker does not answer, its message is sent later)"
        click.echo(f"{forked.id}{late}")
    click.echo(f"  {verb}: {', '.join(forked.kept) or 'nothing'}")
    if forked.overridden:
        click.echo(f"  with another value: {', '.join(forked.overridden)}")
    if forked.taken_back and forked.kept:
        click.echo("  The run has taken back what it had done: what is kept may be undone.", err=True)
    click.echo(
        f"  {'would run' if forked.id is None else 'run'} again: {', '.join(forked.again) or 'nothing'}"
    )
