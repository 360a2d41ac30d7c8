"""Which workers are dead: a decision on heartbeats that the leader itself has watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta


@dataclass
class _Seen:
    beat: int
    since: datetime


@dataclass
class DeathWatch:
    """Compare heartbeat counters over time, by the database's clock.

    A worker is dead when its counter stood still for a whole lease in which the leader could look all the
    time. After an outage, of Postgres or of the leader, nobody is dead at once: the watch begins anew.

    Attributes:
        lease: how long a counter must stand still.
        longest_gap: how long the leader may have looked away before it has to begin anew.
    """

    lease: timedelta
    longest_gap: timedelta
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _looked_at: datetime | None = None

    def observe(self, now: datetime | None, beats: dict[int, int]) -> dict[int, int]:
        """Take in the heartbeats as they stand at `now`; return the dead workers and their counters."""
        if now is None:
            self.forget()
            return {}
        if self._looked_at is None or not self._looked_at <= now <= self._looked_at + self.longest_gap:
            self._seen = {}
        self._looked_at = now
        self._seen = {
            worker: seen
            if (seen := self._seen.get(worker)) is not None and seen.beat == beat
            else _Seen(beat, now)
            for worker, beat in beats.items()
        }
        return {worker: seen.beat for worker, seen in self._seen.items() if now - seen.since >= self.lease}

    def forget(self) -> None:
        """Begin anew: the view was interrupted."""
        self._seen, self._looked_at = {}, None
