"""A pytest plugin for Celery's own integration tests: it swaps the task class."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(scope="session")
def celery_parameters() -> dict[str, Any]:
    """Return what the test apps are made with."""
    durable = os.environ["CELERY_SUITE_MODE"] == "tasks"
    return {"task_cls": "celery_durable:DurableTask"} if durable else {}
