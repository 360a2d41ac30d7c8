"""Operations on runs: what the command line, Flower and your own code call."""

from __future__ import annotations

from celery_durable.operations.forks import Fork
from celery_durable.operations.outcomes import Outcome
from celery_durable.operations.runs import Runs
from celery_durable.store.inspection import Filter
from celery_durable.store.views import (
    AttemptView,
    Count,
    EventView,
    Match,
    Page,
    RunSummary,
    RunView,
    Stats,
    StepView,
    TryView,
)

__all__ = [
    "AttemptView",
    "Count",
    "EventView",
    "Filter",
    "Fork",
    "Match",
    "Outcome",
    "Page",
    "RunSummary",
    "RunView",
    "Runs",
    "Stats",
    "StepView",
    "TryView",
]
