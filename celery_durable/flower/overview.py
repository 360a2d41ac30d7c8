"""How the system is doing: throughput, latency, failures, workers, costly steps, storage."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_durable.flower.filters import FilterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.flower.sites import Site
    from celery_durable.store.connections import Row

_MOST_ENDED = 200_000  # runs from which a chart is drawn
_RECENT = 2_000  # runs whose steps are compared
_MINUTE = 60
WINDOWS: dict[str, tuple[str, int, int]] = {
    "15m": ("15 minutes", 15 * _MINUTE, 30),
    "1h": ("hour", 60 * _MINUTE, 2 * _MINUTE),
    "6h": ("6 hours", 360 * _MINUTE, 10 * _MINUTE),
    "24h": ("24 hours", 1440 * _MINUTE, 30 * _MINUTE),
    "7d": ("7 days", 7 * 1440 * _MINUTE, 240 * _MINUTE),
}


@dataclass
class Slot:
    """What ended within one slot of time."""

    at: datetime
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    recovered: int = 0
    more_attempts: int = 0
    took: tuple[float | None, float | None] = (None, None)
    queued: tuple[float | None, float | None] = (None, None)

    @property
    def ended(self) -> int:
        """How many runs ended."""
        return self.succeeded + self.failed + self.cancelled


@dataclass(frozen=True)
class Overview:
    """How the system is doing.

    Attributes:
        window: the name of the time it covers.
        seconds: how long that is.
        slot_seconds: how long each slot is.
        slots: what ended, slot by slot, without gaps.
        whole: whether all runs of the window are in it.
        runs_a_day: about how many runs were created within the last day.
        bytes_a_run: about how much one run takes, with all that belongs to it.
    """

    window: str
    seconds: int
    slot_seconds: int
    slots: Sequence[Slot]
    whole: bool
    steps: Sequence[Row]
    workers: Sequence[Row]
    lease: float
    tables: Sequence[Row]
    runs_a_day: int
    bytes_a_run: float
    retention: float | None
    stuck: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def retried(self) -> list[Row]:
        """The steps that were tried again most, first."""
        again = [step for step in self.steps if step["more_tries"]]
        return sorted(again, key=lambda step: -step["more_tries"])

    @property
    def total(self) -> int:
        """How many runs ended within the window."""
        return sum(slot.ended for slot in self.slots)

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(slot.failed for slot in self.slots)

    @property
    def recovered(self) -> int:
        """How many of them had lost their worker."""
        return sum(slot.recovered for slot in self.slots)

    @property
    def bytes(self) -> int:
        """How much all tables take."""
        return sum(table["bytes"] for table in self.tables)


async def overview_of(site: Site, window: str) -> Overview:
    """Ask how the system is doing.

    Raises `FilterError` for a window that is not in `WINDOWS`.
    """
    if window not in WINDOWS:
        raise FilterError(f"There is no window {window!r}; known are {', '.join(WINDOWS)}")
    from celery_durable.flower.asking import counts

    _, seconds, slot = WINDOWS[window]
    watching = site.watching
    trend = {"bucket": timedelta(seconds=slot), "age": timedelta(seconds=seconds), "most": _MOST_ENDED}
    (rows, steps), (workers, tables), (moment,), counted = await asyncio.gather(
        watching.several(("trend", trend), ("hot_steps", {"most": _RECENT})),
        watching.several(("workers", {"most": 500}), ("storage", {"schema": watching.schema})),
        watching.rows("moment", "inspection", at=None, ago=timedelta(days=1), slack=timedelta(0)),
        counts(site),
    )
    newest = await watching.rows("newest")
    runs = next((table["rows"] for table in tables if table["name"] == "run"), 0)
    return Overview(
        window=window,
        seconds=seconds,
        slot_seconds=slot,
        slots=_slots(rows, newest[0]["now"], seconds, slot),
        whole=sum(row["runs"] for row in rows) < _MOST_ENDED,
        steps=steps,
        workers=workers,
        lease=site.place.settings.lease,
        tables=tables,
        runs_a_day=max(0, (newest[0]["newest"] or 0) - moment["low"]),
        bytes_a_run=sum(table["bytes"] for table in tables) / runs if runs else 0.0,
        retention=_retention(site),
        stuck=counted["stuck"],
        counts=counted,
    )


def _retention(site: Site) -> float | None:
    kept = site.place.settings.retention
    if kept is not None:
        return kept or None
    expires: Any = site.app.conf.result_expires
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    return float(seconds) if seconds else None


def _slots(rows: Sequence[Row], now: datetime, seconds: int, slot: int) -> list[Slot]:
    last = int(now.timestamp()) // slot * slot
    first = last - (seconds // slot - 1) * slot
    slots = {at: Slot(datetime.fromtimestamp(at, now.tzinfo)) for at in range(first, last + slot, slot)}
    for row in rows:
        found = slots.get(int(row["at"].timestamp()))
        if found is None:
            continue
        setattr(found, row["state"], row["runs"])
        found.recovered += row["recovered"]
        found.more_attempts += int(row["more_attempts"] or 0)
        if row["state"] == "succeeded":
            found.took = tuple(row["took"] or found.took)  # None: none of them was ever claimed
            found.queued = tuple(row["queued"] or found.queued)
    return list(slots.values())
