"""The heartbeat's thread: this worker's life, and who else is alive. It talks to Postgres alone.

A broker that hangs must not stop it, or a live worker would lose its leases.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING

from celery_durable.keeper.thread import KeeperThread
from celery_durable.store.deaths import DeathWatch

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore

logger = logging.getLogger(__name__)

_BATCH = 500


class Heartbeat(KeeperThread):
    """Keeps the worker's row alive; in the leader, buries the dead and hands on their runs.

    Attributes:
        term: the leader lease's term while this worker leads, else None.
        backlog: whether due runs pile up, so that every worker should help.

    Arguments:
        store: the store.
        token: the identity of the worker, shared with its pool children.
        hostname: the worker's node name.
        executing: returns the ids of the runs this worker has messages for; None when it executes none.
        reserved: returns how many messages it holds that no child has started.
        leads: whether it may lead.
        exhausted: the stored error of a run that lost its worker once too often, and its content type.
    """

    def __init__(
        self,
        store: Store,
        *,
        token: uuid.UUID,
        hostname: str,
        executing: Callable[[], set[str]] | None,
        reserved: Callable[[], int],
        leads: bool,
        exhausted: Callable[[], tuple[bytes, str]],
    ) -> None:
        super().__init__(store, "celery-durable-heartbeat")
        self.term: int | None = None
        self.backlog = False
        self.alive = threading.Event()
        self._token = token
        self._hostname = hostname
        self._executing = executing
        self._reserved = reserved
        self._leads = leads
        self._exhausted = exhausted
        lease = store.settings.lease
        self._lease = timedelta(seconds=lease)
        self._beat_every = lease / 3
        self._look_every = lease / 6
        self._watch = DeathWatch(self._lease, longest_gap=self._lease)
        self._suspects: set[tuple[str, uuid.UUID]] = set()
        self._next_beat = 0.0

    def begin(self, keeper: KeeperStore) -> None:
        """Register, on each new connection: after an outage the row may be gone."""
        keeper.register(
            self._token,
            hostname=self._hostname,
            pid=os.getpid(),
            version=version("celery-durable"),
            code=self.store.settings.version,
        )
        self.alive.set()

    def end(self, keeper: KeeperStore) -> None:
        """End the worker cleanly: its leases are handed on at once."""
        if handed_on := keeper.retire(self._token):
            logger.info("Handed on %d runs", len(handed_on))

    def interrupted(self) -> None:
        """Begin the watch anew: nobody is dead because of an outage."""
        self._watch.forget()
        self.term = None

    def run_once(self, keeper: KeeperStore) -> dict[str, int]:
        """Beat if it is time, watch the others, and lead if nobody else does; return counts."""
        counts: dict[str, int] = {}
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + self._beat_every
            counts.update(self._beat(keeper))
        if self._leads:
            self.term, now, beats = keeper.lead(self._token, self._lease / 2)
            dead = self._watch.observe(now, beats)
            if self.term is not None:
                counts["recovered"] = self._recover(keeper, self.term, dead)
        return counts

    @property
    def pause(self) -> float:
        """Seconds until there is something to do."""
        return self._look_every

    def _beat(self, keeper: KeeperStore) -> dict[str, int]:
        backlog = keeper.beat(self._token, reserved=self._reserved())
        if backlog is None:
            logger.error("%s was declared dead: it begins anew, its runs are elsewhere", self._hostname)
            self.begin(keeper)
        self.backlog = bool(backlog)
        return {"strays": self._release_strays()}

    def _release_strays(self) -> int:
        """Hand on runs of this worker that nobody here executes: seen twice, so not just on their way."""
        if self._executing is None:
            return 0
        executing = self._executing()
        idle = {run for run in self.store.runs.owned(self._token) if run[0] not in executing}
        strays, self._suspects = idle & self._suspects, idle
        if strays:
            logger.warning("Releasing %d runs whose release did not reach the store", len(strays))
            return len(self.store.runs.release_strays(self._token, strays))
        return 0

    def _recover(self, keeper: KeeperStore, term: int, dead: dict[int, int]) -> int:
        """Bury dead workers and hand on the runs of all that are gone; return how many runs."""
        if dead:
            for worker in keeper.bury(term, dead):
                logger.warning("Worker %s has not beaten for a whole lease: its runs are recovered", worker)
        result, result_type = self._exhausted()
        total = 0
        while True:
            recovered = keeper.recover_orphans(
                term,
                limit=_BATCH,
                max_recoveries=self.store.settings.max_recoveries,
                result=result,
                result_type=result_type,
            )
            total += len(recovered)
            if len(recovered) < _BATCH:
                return total
