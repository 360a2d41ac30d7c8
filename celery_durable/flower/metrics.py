"""Numbers on Flower's `/metrics`: always cached ones, for scraping holds up everything else Flower does."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily

from celery_durable.exceptions import StoreError
from celery_durable.flower.asking import stuck_keys
from celery_durable.flower.settings import option
from celery_durable.flower.sites import any_site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.flower.sites import Site

logger = logging.getLogger(__name__)

_FRESH = 15.0  # seconds for which numbers are served again


@dataclass
class Numbers:
    """What was measured, and when."""

    runs: list[tuple[str, str, int]]
    stuck: int
    workers: int
    up: bool
    at: float


class Collector:
    """Gauges of the durable store. Labels are states and reasons, never ids, tasks or values."""

    def __init__(self) -> None:
        self._numbers: Numbers | None = None
        self._task: asyncio.Task[None] | None = None

    def describe(self) -> list[Any]:
        """Return nothing: what there is to collect is known when there is a store."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the numbers measured last; measure again in the background when they are old."""
        self._refresh()
        numbers = self._numbers
        if numbers is None:
            return
        yield GaugeMetricFamily("celery_durable_up", "Whether Postgres answered", value=float(numbers.up))
        runs = GaugeMetricFamily(
            "celery_durable_runs", "Runs by state and reason", labels=["state", "reason"]
        )
        for state, reason, count in numbers.runs:
            runs.add_metric([state, reason], count)
        yield runs
        yield GaugeMetricFamily(
            "celery_durable_stuck_runs", "Runs that something should have moved on", value=numbers.stuck
        )
        yield GaugeMetricFamily("celery_durable_workers", "Live worker processes", value=numbers.workers)

    def _refresh(self) -> None:
        if self._numbers is not None and time.monotonic() - self._numbers.at < _FRESH:
            return
        if self._task is not None and not self._task.done():
            return
        try:
            site = any_site()
            if site is not None and option(site.application, "tab"):
                self._task = asyncio.get_running_loop().create_task(self._measure(site))
        except Exception:
            logger.exception("The durable metrics cannot be measured")

    async def _measure(self, site: Site) -> None:
        try:
            counts = await site.watching.rows("counts", "inspection")
            workers = await site.watching.rows("workers", most=10_000)
            stuck = await stuck_keys(site)
        except StoreError as error:
            logger.debug("no metrics: %s", error)
            self._numbers = Numbers([], 0, 0, up=False, at=time.monotonic())
            return
        runs = [(row["state"], row["reason"] or "", row["runs"]) for row in counts]
        alive = sum(worker["silent"] <= site.place.settings.lease for worker in workers)
        self._numbers = Numbers(runs, len(stuck), alive, up=True, at=time.monotonic())


_registered: list[Collector] = []


def register() -> None:
    """Add the collector to what Flower's `/metrics` shows, once."""
    if not _registered:
        collector = Collector()
        REGISTRY.register(collector)
        _registered.append(collector)
