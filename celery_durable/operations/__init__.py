"""Operations on runs: what the command line, Flower and your own code call."""

from __future__ import annotations

from celery_durable.operations.runs import Outcome, Runs
from celery_durable.store.views import (
    AttemptView,
    Count,
    EventView,
    Match,
    Page,
    RunSummary,
    RunView,
    StepView,
)

__all__ = [
    "AttemptView",
    "Count",
    "EventView",
    "Match",
    "Outcome",
    "Page",
    "RunSummary",
    "RunView",
    "Runs",
    "StepView",
]
