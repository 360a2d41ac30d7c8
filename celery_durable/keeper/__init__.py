"""The keeper: services that keep runs moving. Each is a function that is run once and returns counts."""

from __future__ import annotations

from celery_durable.keeper.loop import Keeper, run_standalone

__all__ = ["Keeper", "run_standalone"]
