"""A pytest plugin for Celery's own integration tests: swaps the task class, leaves out what is listed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from celery_durable.transport import register

register()  # the broker may be durable+postgresql://, and the tests' app has no durable tasks

MODE = "CELERY_SUITE_MODE"


@dataclass(frozen=True)
class Deselected:
    """One line of `deselected.txt`: mode, test and reason between tabs."""

    mode: str
    test: str
    reason: str


def deselected() -> list[Deselected]:
    """Return the tests that are known not to pass."""
    lines = (Path(__file__).parent / "deselected.txt").read_text().splitlines()
    return [
        Deselected(*(part.strip() for part in line.split("\t", 2)))
        for line in lines
        if line.strip() and not line.startswith("#")
    ]


def refused(mode: str, file: str) -> set[str]:
    """Return the tests of a file that are left out in a mode."""
    modes = ("*", mode)
    return {one.test for one in deselected() if one.mode in modes and one.test.startswith(f"{file}::")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is listed, with all its parameters."""
    left_out = [
        item
        for item in items
        if item.nodeid.rpartition("/")[2].partition("[")[0] in refused(os.environ[MODE], item.path.name)
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def celery_parameters() -> dict[str, Any]:
    """Return what the test apps are made with."""
    durable = os.environ[MODE] == "tasks"
    return {"task_cls": "celery_durable:DurableTask"} if durable else {}
