"""Custom request classes: what a worker's main process does with a message."""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request

from celery_durable.request import DurableRequest
from semantics.journal import note


class Noting:
    """A mixin that notes that the pool has taken a task."""

    def on_accepted(self, pid: int, time_accepted: float) -> Any:
        note("on_accepted", self.id)  # type: ignore[attr-defined]
        return super().on_accepted(pid, time_accepted)  # type: ignore[misc]


class PlainNotingRequest(Noting, Request):
    """Of plain tasks."""


class DurableNotingRequest(Noting, DurableRequest):
    """Of durable tasks."""
