"""The demo claims nothing that its ledger does not prove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import checkout  # noqa: F401  (makes example_project importable)
import pytest

from example_project import ledger
from example_project.demo.evidence import contradictions, histories
from example_project.ledger import Entry

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = "one@host", "two@host"
PROOF = (
    (ONE, "start", "fetch"),
    (ONE, "finish", "fetch"),
    (ONE, "start", "transcode"),
    (TWO, "start", "transcode"),
    (TWO, "finish", "transcode"),
    (TWO, "start", "report"),
    (TWO, "finish", "report"),
)
Line = tuple[str, str, str]


def entries(lines: tuple[Line, ...]) -> list[Entry]:
    return [
        Entry(time=float(moment), event=event, step=step, run="run", worker=worker, pid=1)  # type: ignore[arg-type]
        for moment, (worker, event, step) in enumerate(lines)
    ]


def doubts(*lines: Line) -> list[str]:
    return contradictions(histories(entries(lines)), interrupted="transcode", killed=ONE)


def test_a_run_that_went_on_where_it_was_stopped_is_proof() -> None:
    assert doubts(*PROOF) == []


def test_a_finished_step_that_ran_again_is_no_proof() -> None:
    again = ((TWO, "start", "fetch"), (TWO, "finish", "fetch"))

    assert doubts(*PROOF[:3], *again, *PROOF[3:]) == [
        "fetch was started 2 times, not 1",
        "fetch was finished 2 times, not once",
        "fetch ran before the kill but not on one@host",
    ]


@pytest.mark.parametrize(
    ("lines", "doubt"),
    [
        (PROOF[:-1], "report was finished 0 times"),
        (PROOF[:3] + PROOF[5:], "transcode was started 1 times, not 2"),
        ((*PROOF[:3], (ONE, "finish", "transcode"), *PROOF[3:]), "not killed in the middle"),
        (PROOF[2:], "not killed between"),
        (PROOF[:5], "not killed between"),
        (PROOF[:2], "not in the ledger"),
        ((*PROOF[:5], (ONE, "start", "report"), (ONE, "finish", "report")), "after it was killed"),
    ],
)
def test_what_is_missing_is_named(lines: tuple[Line, ...], doubt: str) -> None:
    assert any(doubt in found for found in doubts(*lines))


def test_histories_keep_the_order_of_first_starts_and_the_last_duration() -> None:
    steps = histories(entries(PROOF))

    assert [step.step for step in steps] == ["fetch", "transcode", "report"]
    assert (steps[1].started, steps[1].finished, steps[1].seconds(now=9.0)) == ([ONE, TWO], [TWO], 1.0)


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    line = '{"time": 1.0, "event": "start", "step": "fetch", "run": "%s", "worker": "one@host", "pid": 7}\n'
    path = tmp_path / "ledger.jsonl"
    path.write_text(line % "mine" + line % "other" + (line % "mine")[:-20])

    assert [entry.run for entry in ledger.read(path, "mine")] == ["mine"]


def test_a_ledger_nobody_wrote_to_is_empty(tmp_path: Path) -> None:
    assert ledger.read(tmp_path / "ledger.jsonl", "mine") == []
