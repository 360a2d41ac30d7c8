"""The programs of the how-to pages do what their pages say: each with a worker and services for real."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from harness.brokers import private_redis
from harness.programs import HOW_TO, Program

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {
    "book_trip": "sagas.md",
    "approvals": "wait.md",
    "book_rooms": "patterns.md",
    "call_once": "call-once.md",
    "call_partner": "call-http-services.md",
    "fetch_all": "async.md",
    "change_code": "change-code.md",
    "encode_video": "patterns.md",
    "fork_orders": "resume-fork-edit.md",
    "hourly_report": "patterns.md",
    "in_threads": "swap-the-base-class.md",
    "limit_exports": "limit-concurrency.md",
    "pay_once": "transactions.md",
    "place_orders": "sqlalchemy.md",
    "thumbnails": "children.md",
    "ticker": "long-histories.md",
}


def printed_on(page: str, program: str) -> str:
    """Return what the page says, behind a program, that it prints."""
    text = (HOW_TO / page).read_text()
    found = re.search(rf"programs/{program}\.py\n.*?```text\n(.*?)```", text, re.DOTALL)
    assert found, f"{page} does not say what {program} prints"
    return found[1]


@pytest.mark.parametrize("program", PAGES)
def test_a_program_prints_what_its_page_says(program: str, database_url: str, tmp_path: Path) -> None:
    with private_redis() as redis:  # all of them use the queue `celery`
        copy = Program(program, tmp_path, backend=f"durable+{database_url}", broker=redis.url)
        with copy.worker(concurrency=2):
            done = copy.run(timeout=120)

    assert done.returncode == 0, (done.stdout, done.stderr, copy.log)
    assert done.stdout == printed_on(PAGES[program], program), copy.log
