"""`durable resume` and `durable cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli.output import app_of, as_json_option, choose, print_json, reporting, run_arguments
from celery_durable.exceptions import RunNotFoundError
from celery_durable.operations import Outcome, Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_RESUME = """\b
Examples:
  celery -A proj durable resume 3f2a               the beginning of an id is enough
  celery -A proj durable resume 3f2a 9c01 --reason 'payment API is back'
  celery -A proj durable runs --reason exhausted --json |
    jq -r '.runs[].id' | xargs celery -A proj durable resume
"""
_CANCEL = """\b
Examples:
  celery -A proj durable cancel 3f2a
  celery -A proj durable cancel 3f2a 9c01 --reason 'wrong customer'
"""

_reason = click.option("--reason", help="Why; kept with the run.")
_actor = click.option("--as", "actor", metavar="NAME", help="Who; the user of this shell by default.")


@click.command(epilog=_RESUME)
@run_arguments
@_reason
@_actor
@as_json_option
@click.pass_context
@reporting
def resume(
    ctx: click.Context, *, ids: tuple[str, ...], reason: str | None, actor: str | None, as_json: bool
) -> None:
    """Execute failed or cancelled runs again.

    Finished steps are kept and not repeated. Step errors after the last success are put aside, and retries
    and recoveries count from zero.
    """
    operations = Runs(app_of(ctx))
    _each(
        operations,
        ids,
        lambda known: operations.resume_many(known, reason=reason, actor=actor),
        _resumed,
        as_json=as_json,
    )


@click.command(epilog=_CANCEL)
@run_arguments
@_reason
@_actor
@as_json_option
@click.pass_context
@reporting
def cancel(
    ctx: click.Context, *, ids: tuple[str, ...], reason: str | None, actor: str | None, as_json: bool
) -> None:
    """End runs for good: at once if they wait, at their next step if they are being executed."""
    operations = Runs(app_of(ctx))
    _each(
        operations,
        ids,
        lambda known: operations.cancel_many(known, reason=reason, actor=actor),
        _cancelled,
        as_json=as_json,
    )


def _each(
    operations: Runs,
    ids: Sequence[str],
    change: Callable[[Sequence[str]], Sequence[Outcome]],
    say: Callable[[Outcome], str],
    *,
    as_json: bool,
) -> None:
    """Change each run that can be found; one that cannot does not keep the others back."""
    known: list[str] = []
    outcomes: list[Outcome] = []
    for prefix in ids:
        try:
            known.append(choose(operations, prefix))
        except RunNotFoundError as error:
            outcomes.append(Outcome(prefix, None, None, changed=False, error=error))
    outcomes += change(known) if known else []
    if as_json:
        print_json({"runs": [_document(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            if outcome.error is not None:
                click.echo(f"Error: {outcome.error}", err=True)
            else:
                click.echo(f"{outcome.id}  {say(outcome)}")
    if any(outcome.error is not None for outcome in outcomes):
        raise click.exceptions.Exit(1)


def _resumed(outcome: Outcome) -> str:
    late = "" if outcome.published else "; the broker does not answer, its message is sent later"
    return f"{outcome.before} → pending{late}"


def _cancelled(outcome: Outcome) -> str:
    if outcome.state is not None and outcome.state.final:
        return f"{outcome.before} → {outcome.state}"
    return "stops at its next step" if outcome.changed else "has been asked to stop before"


def _document(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "id": outcome.id,
        "before": outcome.before,
        "state": outcome.state,
        "changed": outcome.changed,
        "published": outcome.published,
        "error": error and {"type": type(error).__name__, "message": str(error)},
    }
