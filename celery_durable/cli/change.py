"""`durable resume`, `durable retry` and `durable cancel`: of named runs, or of all that match."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli.filtering import bulk_options, progress
from celery_durable.cli.output import app_of, as_json_option, choose, print_json, reporting
from celery_durable.exceptions import RunNotFoundError
from celery_durable.operations import Outcome, Runs
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.operations import Filter

_RESUME = """\b
Examples:
  celery -A proj durable resume 3f2a               the beginning of an id is enough
  celery -A proj durable resume 3f2a 9c01 --reason 'payment API is back'
  celery -A proj durable resume --state failed --task proj.charge --since 2h --dry-run
  celery -A proj durable resume --why exhausted    every dead letter
"""
_RETRY = """\b
Examples:
  celery -A proj durable retry 3f2a --reason 'payment API is back'
  celery -A proj durable retry --task proj.charge --since 2h --dry-run
"""
_CANCEL = """\b
Examples:
  celery -A proj durable cancel 3f2a
  celery -A proj durable cancel 3f2a 9c01 --reason 'wrong customer'
  celery -A proj durable cancel --state waiting --task proj.import_ --until 3d --dry-run
"""
_SHOWN = 10

_ids = click.argument("ids", metavar="[RUN...]", nargs=-1)
_reason = click.option("--reason", help="Why; kept with the run.")
_actor = click.option("--as", "actor", metavar="NAME", help="Who; the user of this shell by default.")


@click.command(epilog=_RESUME)
@_ids
@bulk_options
@_reason
@_actor
@as_json_option
@click.pass_context
@reporting
def resume(ctx: click.Context, /, **options: Any) -> None:
    """Execute failed or cancelled runs again.

    Finished steps are kept and not repeated. Step errors after the last success are put aside, and retries
    and recoveries count from zero. Children that did not succeed are resumed when the run
    waits for them again.
    """
    operations = Runs(app_of(ctx))
    _change(operations, operations.resume_many, "Resuming", _resumed, **options)


@click.command(epilog=_RETRY)
@_ids
@bulk_options
@_reason
@_actor
@as_json_option
@click.pass_context
@reporting
def retry(ctx: click.Context, /, **options: Any) -> None:
    """Try runs again at once that wait for a retry."""
    operations = Runs(app_of(ctx))
    _change(operations, operations.retry_now_many, "Retrying", _resumed, **options)


@click.command(epilog=_CANCEL)
@_ids
@bulk_options
@_reason
@_actor
@as_json_option
@click.option(
    "--terminate",
    is_flag=True,
    help="Interrupt executed steps, children's too: kill pool processes.",
)
@click.pass_context
@reporting
def cancel(ctx: click.Context, /, *, terminate: bool, **options: Any) -> None:
    """End runs for good: at once if they wait, at their next step if they are being executed.

    Their children are cancelled, too, except for detached ones.
    """
    operations = Runs(app_of(ctx))
    change = partial(operations.cancel_many, terminate=terminate)
    _change(operations, change, "Cancelling", _cancelled, **options)


def _change(
    operations: Runs,
    change: Callable[..., Sequence[Outcome]],
    doing: str,
    say: Callable[[Outcome], str],
    *,
    ids: Sequence[str],
    wanted: Filter | None,
    dry_run: bool,
    as_json: bool,
    reason: str | None,
    actor: str | None,
) -> None:
    if wanted is None:
        outcomes = _each(operations, ids, lambda known: change(known, reason=reason, actor=actor))
    elif dry_run:
        _would_change(change(wanted, dry_run=True), as_json=as_json)
        return
    else:
        total = len(change(wanted, dry_run=True))
        with progress(doing, total=total, hidden=as_json) as shown:
            outcomes = list(change(wanted, reason=reason, actor=actor, progress=shown))
    _report(outcomes, say, as_json=as_json, in_bulk=wanted is not None)


def _each(
    operations: Runs, ids: Sequence[str], change: Callable[[Sequence[str]], Sequence[Outcome]]
) -> list[Outcome]:
    """Change each run that can be found; one that cannot does not keep the others back."""
    known: list[str] = []
    outcomes: list[Outcome] = []
    for prefix in ids:
        try:
            known.append(choose(operations, prefix))
        except RunNotFoundError as error:
            outcomes.append(Outcome(prefix, None, None, changed=False, error=error))
    return [*outcomes, *(change(known) if known else [])]


def _would_change(matching: Sequence[Outcome], *, as_json: bool) -> None:
    if as_json:
        found = {"matching": len(matching), "children": sum(one.children for one in matching)}
        print_json({"dry_run": True, **found, "runs": [one.id for one in matching]})
        return
    click.echo(f"{len(matching):,} runs match; nothing was changed.")
    for one in matching[:_SHOWN]:
        click.echo(f"  {one.id}  {one.state}{_children(one)}")
    if len(matching) > _SHOWN:
        click.echo(f"  and {len(matching) - _SHOWN:,} more")


def _report(
    outcomes: Sequence[Outcome], say: Callable[[Outcome], str], *, as_json: bool, in_bulk: bool
) -> None:
    wrong = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        print_json({"runs": [_document(outcome) for outcome in outcomes]})
    else:
        for outcome in outcomes:
            if outcome.error is not None:
                click.echo(f"Error: {outcome.error}", err=True)
            elif not in_bulk:
                click.echo(f"{outcome.id}  {say(outcome)}")
        if in_bulk:
            done = sum(outcome.changed for outcome in outcomes)
            late = sum(not outcome.published for outcome in outcomes)
            words = f"; {late:,} messages are sent later, the broker does not answer" if late else ""
            click.echo(f"{done:,} of {len(outcomes):,} matching runs changed{words}.")
    if wrong:
        raise click.exceptions.Exit(1)


def _resumed(outcome: Outcome) -> str:
    late = "" if outcome.published else "; the broker does not answer, its message is sent later"
    return f"{outcome.before} → pending{_children(outcome)}{late}"


def _children(outcome: Outcome) -> str:
    if not outcome.children:
        return ""
    return ", with one child" if outcome.children == 1 else f", with {outcome.children:,} children"


def _cancelled(outcome: Outcome) -> str:
    if outcome.state is not None and outcome.state.final:
        return f"{outcome.before} → {outcome.state}"
    if outcome.state is RunState.CANCELLING:
        return f"{outcome.before} → cancelling" if outcome.changed else "takes back already what it has done"
    return "stops at its next step" if outcome.changed else "has been asked to stop before"


def _document(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "id": outcome.id,
        "before": outcome.before,
        "state": outcome.state,
        "changed": outcome.changed,
        "children": outcome.children,
        "published": outcome.published,
        "error": error and {"type": type(error).__name__, "message": str(error)},
    }
