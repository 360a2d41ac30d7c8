"""`durable check`: replay stored runs against the code at hand, before it is deployed."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from celery_durable.cli.filtering import progress
from celery_durable.cli.moments import moment
from celery_durable.cli.output import app_of, as_json_option, choose, print_json, reporting
from celery_durable.operations import Runs
from celery_durable.operations.redaction import redaction_of
from celery_durable.rehearsal import rehearse_all
from celery_durable.run import FINAL_STATES, RunState
from celery_durable.verdicts import BREAKS, CONTINUES, ENDS, FAILS, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.operations.redaction import Redaction
    from celery_durable.store.views import RunSummary

_EPILOG = """\b
Examples:
  celery -A proj durable check                     with the new code, before its deploy
  celery -A proj durable check --task proj.order --limit 500
  celery -A proj durable check --runs resumable --since 1d
  celery -A proj durable check 3f2a --json | jq -r '.runs[].problem'
"""
_SELECTIONS = {
    "unfinished": sorted(frozenset(RunState) - FINAL_STATES),
    "resumable": [RunState.FAILED, RunState.CANCELLED],
}
_PAGE = 500
_AHEAD = 3


@click.command(epilog=_EPILOG)
@click.argument("ids", metavar="[RUN...]", nargs=-1)
@click.option(
    "--runs", "selection", type=click.Choice(list(_SELECTIONS)), default="unfinished", show_default=True,
    help="Which runs, where no ids are given.",
)  # fmt: skip
@click.option("--task", help="Only runs of this task.")
@click.option("--since", type=moment, metavar="WHEN", help="Created then or later: 10m, 2h, 3d, or ISO 8601.")
@click.option("--limit", type=click.IntRange(1), help="Only the newest so many.")
@as_json_option
@click.pass_context
@reporting
def check(
    ctx: click.Context,
    /,
    *,
    ids: tuple[str, ...],
    selection: str,
    limit: int | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Replay stored runs against the code at hand, and say which of them would break.

    Nothing is written or sent, and no step is executed: a step that is not stored ends the replay of its run
    ("would continue there"). The code between steps is executed, and what it prints goes to standard error.
    Exit status 1 if a run would break.
    """
    app = app_of(ctx)
    operations, redaction = Runs(app), redaction_of(app)
    if ids:
        chosen: Sequence[str] = [choose(operations, prefix) for prefix in ids]
    else:
        chosen = _matching(operations, limit, {**wanted, "state": _SELECTIONS[selection]})
    verdicts: list[Verdict] = []
    # What bodies print, also on the event loop and in threads of theirs, is no part of the document.
    with progress("Replaying", total=len(chosen), hidden=as_json) as shown, redirect_stdout(sys.stderr):
        for verdict in rehearse_all(app, chosen):
            verdicts.append(_redacted(verdict, redaction))
            shown(len(verdicts))
    if as_json:
        print_json({"ok": all(one.ok for one in verdicts), "runs": [vars(one) for one in verdicts]})
    else:
        _say(verdicts)
    if not all(one.ok for one in verdicts):
        raise click.exceptions.Exit(1)


def _redacted(verdict: Verdict, redaction: Redaction) -> Verdict:
    """Return a verdict as it may be shown: a problem may quote arguments."""
    return replace(verdict, problem=redaction.text("error", verdict.task or "", verdict.problem))


def _matching(operations: Runs, limit: int | None, wanted: dict[str, Any]) -> list[str]:
    found: list[str] = []
    before: int | None = None
    while limit is None or len(found) < limit:
        page = operations.list(**wanted, limit=_PAGE, before=before)
        found += [run.id for run in page.runs if _may_go_on(run)]
        before = page.next
        if before is None:
            break
    return found[:limit]


def _may_go_on(run: RunSummary) -> bool:
    """Whether a run is not over, or can be resumed: not once all that it had done was taken back."""
    return not run.state.final or run.ending is None or run.reason == "rollback"


def _say(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        if not verdict.ok:
            version = f"  (version {verdict.version})" if verdict.version else ""
            click.echo(f"{verdict.id}  {verdict.task}{version} would break")
            click.echo("  " + (verdict.problem or "").rstrip().replace("\n", "\n  "))
        elif verdict.ahead:
            ahead = ", ".join(verdict.ahead[:_AHEAD]) + (", …" if len(verdict.ahead) > _AHEAD else "")
            at = verdict.at or "something new"
            click.echo(f"{verdict.id}  {verdict.task} would come to {at} in front of the stored {ahead}")
    counts = Counter(verdict.outcome for verdict in verdicts)
    words = {CONTINUES: "continue", ENDS: "end", FAILS: "fail as they did", BREAKS: "would break"}
    told = ", ".join(f"{counts[outcome]:,} {said}" for outcome, said in words.items() if counts[outcome])
    click.echo(f"{len(verdicts):,} runs replayed: {told or 'none'}.")
