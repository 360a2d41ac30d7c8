"""Parts of the command line that need no database."""

from __future__ import annotations

import io
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import click
import pytest
from rich.console import Console

from celery_durable.cli import change, durable
from celery_durable.cli.moments import moment
from celery_durable.cli.output import plain, short
from celery_durable.cli.timeline import story
from celery_durable.operations import Outcome
from celery_durable.run import RunState
from celery_durable.store.views import AttemptView, EventView, RunView, StepView, TryView

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("1.5h", timedelta(minutes=90)),
        ("2w", timedelta(weeks=2)),
        ("2026-05-04T12:00:00Z", NOW),
        ("2026-05-04T14:00+02:00", NOW),
    ],
)
def test_moments_are_lengths_before_now_or_iso_8601(text: str, meant: object) -> None:
    assert moment(text) == meant


def test_a_moment_without_a_zone_is_in_the_local_one() -> None:
    parsed = moment("2026-05-04T12:00")
    assert isinstance(parsed, datetime)
    assert parsed.tzinfo is not None


@pytest.mark.parametrize("text", ["soon", "10", "10 parsecs", ""])
def test_other_moments_are_wrong_usage(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither like"):
        moment(text)


def test_uuids_are_shown_as_far_as_it_takes_to_tell_them_apart() -> None:
    one = "11111111-1111-4111-8111-111111111111"
    two = "11111111-1112-4111-8111-111111111111"
    other = "22222222-1111-4111-8111-111111111111"

    assert short([one, two, other, "video-7"]) == {
        one: "11111111-1111",
        two: "11111111-1112",
        other: "22222222",
        "video-7": "video-7",
    }


def test_moments_in_json_are_utc() -> None:
    assert plain(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-05-04T12:00:00Z"


def test_every_command_has_help_with_examples_and_takes_json() -> None:
    context = click.Context(durable)
    for name in durable.list_commands(context):
        command = durable.get_command(context, name)
        assert command is not None
        assert "Examples:" in (command.epilog or ""), name
        assert any("--json" in option.opts for option in command.params), name


def a_run() -> RunView:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(RunView))
    step: dict[str, Any] = {"arguments": "()", "spent": 0, "codec": None, "output_bytes": 1, "stored_at": NOW}
    values |= {"key": 1, "id": "a-run", "task": "media.process", "queue": "media", "state": RunState.FAILED}
    values |= {"attempt": 1, "generation": 0, "retries": 1, "recoveries": 0, "cancel_requested": False}
    values |= {
        "created_at": NOW,
        "finished_at": NOW,
        "now": NOW,
        "orphaned": False,
        "body_bytes": 10,
        "forks": (),
        "keys": (),
    }
    values |= {"error": "ValueError: [bold]no[/bold]", "traceback": "Traceback\n  x[0] [red]\nValueError: no"}
    values["attempts"] = (
        AttemptView(
            number=1,
            hostname="celery@a",
            pid=77,
            started_at=NOW,
            ended_at=NOW,
            seconds=12.0,
            outcome="failed",
            error="ValueError: no",
            traceback=None,
        ),
    )
    values["steps"] = (
        StepView(key="fetch", seq=1, outcome="ok", attempt=1, tries=1, error=None, seconds=10.0, **step),
        StepView(key="probe", seq=2, outcome="error", attempt=1, tries=3, error="no", seconds=1.0, **step),
    )
    values["events"] = (
        EventView(at=NOW, kind="resumed", actor="ada", detail={"reason": "again", "operation": "x"}),
    )
    return RunView(**values)


def rendered(width: int, *, unicode: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for part in story(a_run(), width=width, unicode=unicode):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_story_has_attempts_steps_with_bars_events_and_the_traceback() -> None:
    text = rendered(120)

    lines = text.splitlines()
    fetch, probe = (next(line for line in lines if line.startswith(name)) for name in ("fetch", "probe"))
    assert fetch.count("█") == 24
    assert probe.count("█") == 2
    assert "celery@a" in text
    assert "reason: again" in text
    assert "operation" not in text
    assert "x[0] [red]" in text  # not taken for markup
    assert "[bold]no[/bold]" in text


def test_a_story_shows_calls_apart_from_what_was_done_to_the_run() -> None:
    made = {"step": "pay", "method": "POST", "url": "https://bank/charge", "status": 503, "seconds": 0.2}
    lost = {**made, "status": None, "error": "ReadTimeout"}
    calls = tuple(EventView(at=NOW, kind="call", actor=None, detail=detail) for detail in (made, lost))
    run = replace(a_run(), events=(*a_run().events, *calls))

    console = Console(file=io.StringIO(), width=120, highlight=False)
    for part in story(run, width=120):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    apart, _, events = console.file.getvalue().partition("\nEvents")

    assert "External calls" in apart
    assert "pay POST https://bank/charge 503 200 ms" in " ".join(apart.split())
    assert "ReadTimeout" in apart
    assert "bank" not in events


def test_a_story_says_why_a_step_was_tried_so_often_and_what_was_taken_back() -> None:
    failed = tuple(
        TryView(at=NOW, seconds=0.1, attempt=1, error=f"ConnectionError: try {n}") for n in range(1, 8)
    )
    fetch, probe = a_run().steps
    steps = (fetch, replace(probe, tries=8, earlier=failed), replace(fetch, key="rollback:cancel#2"))
    run = replace(a_run(), steps=steps, ending="failed", rollbacks=["rollback:cancel", "rollback:cancel#2"])

    console = Console(file=io.StringIO(), width=120, highlight=False)
    for part in story(run, width=120):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()

    assert "probe failed 8 times: 7 times ConnectionError: try …, 1 times no" in text
    compensations = text.partition("\nCompensations\n")[2]
    assert compensations.splitlines()[0] == "1 of 2 compensations is made"
    assert [line.split()[:2] for line in compensations.splitlines()[2:4]] == [
        ["cancel#2", "made"],
        ["cancel", "not"],
    ]


def test_a_story_fits_a_narrow_terminal_and_one_without_unicode() -> None:
    assert all(len(line) <= 50 for line in rendered(50).splitlines())
    assert "#" * 24 in rendered(120, unicode=False)


def test_a_resume_says_how_many_children_go_on_with_the_run() -> None:
    outcome = Outcome("3f2a", RunState.FAILED, RunState.PENDING, changed=True)

    assert change._resumed(outcome) == "failed → pending"
    assert change._resumed(replace(outcome, children=1)) == "failed → pending, with one child"
    assert change._resumed(replace(outcome, children=2000)) == "failed → pending, with 2,000 children"
