"""What measurements mean: pure functions from what `doctor` measured to findings that say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.operations.findings.database import (
    about_privileges,
    about_schema,
    about_tables,
    about_transactions,
)
from celery_durable.operations.findings.finding import Finding, Level
from celery_durable.operations.findings.queues import about_queues
from celery_durable.operations.findings.runs import about_leader, about_runs, about_workers
from celery_durable.operations.findings.server import about_server

if TYPE_CHECKING:
    from celery_durable.config import Settings
    from celery_durable.store.health import Health

__all__ = ["Finding", "Level", "about_queues", "judge"]


def judge(health: Health, settings: Settings) -> list[Finding]:
    """Return findings on everything that was measured, in the order in which one would look."""
    found = [
        *about_server(health.server, settings),
        *about_schema(health),
        *about_privileges(health),
        *about_transactions(health),
        *about_tables(health),
    ]
    if health.ailing:
        found += [*about_workers(health, settings), *about_leader(health), *about_runs(health)]
    return found
