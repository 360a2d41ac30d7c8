"""One attempt of a run: replay what is stored, run what is not, store it, and stop when told to."""

from __future__ import annotations

from celery_durable.executor.execution import Execution

__all__ = ["Execution"]
