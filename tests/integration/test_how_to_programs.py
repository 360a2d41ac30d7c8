"""The programs of the how-to pages do what their pages say: each with a worker and services for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.brokers import service
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = {
    "book_trip": "sagas.md",
    "approvals": "wait.md",
    "call_once": "call-once.md",
    "call_partner": "call-http-services.md",
    "fetch_all": "async.md",
    "change_code": "change-code.md",
    "fork_orders": "resume-fork-edit.md",
    "limit_exports": "limit-concurrency.md",
    "pay_once": "transactions.md",
    "place_orders": "sqlalchemy.md",
    "thumbnails": "children.md",
    "ticker": "long-histories.md",
}


def printed_on(page: str) -> str:
    """Return what the page says that its program prints."""
    found = re.search(r"```text\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
    assert found, f"{page} does not say what its program prints"
    return found[1]


@contextmanager
def worker(program: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    log = folder / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", program, "worker", "-c", "2", "-l", "INFO"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--without-gossip", "--without-mingle"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        eventually(lambda: " ready." in log.read_text(), timeout=40, what=log.read_text)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.parametrize("program", PAGES)
def test_a_program_prints_what_its_page_says(program: str, database_url: str, tmp_path: Path) -> None:
    shutil.copy(HOW_TO / "programs" / f"{program}.py", tmp_path)
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "BACKEND": f"durable+{database_url}",
        "BROKER": service("DURABLE_TEST_REDIS"),
    }
    init = [sys.executable, "-m", "celery", "-A", program, "durable", "init"]
    subprocess.run(init, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=60)

    with worker(program, tmp_path, environment):
        done = subprocess.run(
            [sys.executable, f"{program}.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    log = (tmp_path / "worker.log").read_text()
    assert done.returncode == 0, (done.stdout, done.stderr, log)
    assert done.stdout == printed_on(PAGES[program]), log
