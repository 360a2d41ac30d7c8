"""Time, ids and chance of a run: the same at every replay."""

from __future__ import annotations

import random as random_module
import threading
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from celery_durable.run import Claim


class Chance:
    """What a body draws; moments are stored with its next step, the rest follows from the run's seed.

    Arguments:
        claim: the lease, with the seed and the database's time.
        clock: the moments that are stored.
    """

    def __init__(self, claim: Claim, clock: Sequence[datetime]) -> None:
        self.generator = random_module.Random(claim.seed.int)  # noqa: S311  (repeatable on purpose)
        self._claimed_at = claim.claimed_at
        self._started = time.monotonic()
        self._times = clock
        self._times_read = 0
        self._times_new: list[datetime] = []
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """Return the database's time, the same at every replay."""
        with self._lock:
            if self._times_read < len(self._times):
                self._times_read += 1
                return self._times[self._times_read - 1]
            moment = self.reckoned()
            self._times_new.append(moment)
            return moment

    def reckoned(self) -> datetime:
        """Return the database's time as far as this process knows it: never ahead of it, and not stored."""
        return self._claimed_at + timedelta(seconds=time.monotonic() - self._started)

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID, the same at every replay."""
        with self._lock:
            return uuid.UUID(int=self.generator.getrandbits(128), version=4)

    def drawn(self) -> list[datetime] | None:
        """Take the moments that are not stored yet."""
        with self._lock:
            drawn, self._times_new = self._times_new, []
        return drawn or None

    def put_back(self, drawn: list[datetime] | None) -> None:
        """Return moments that were not stored after all."""
        with self._lock:
            self._times_new = [*(drawn or ()), *self._times_new]
