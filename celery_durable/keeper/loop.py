"""The keeper's thread: heartbeat, leader lease and services, on a connection of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import StoreError
from celery_durable.keeper import lost, services
from celery_durable.keeper.deaths import DeathWatch
from celery_durable.store.connections import PASSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore, Look

logger = logging.getLogger(__name__)

_TICK = 1.0
_OUTAGE_PAUSE = 0.5


class Keeper:
    """One worker's heartbeat, and its share of the services.

    Arguments:
        app: the Celery app, for publishing.
        store: the store.
        token: the identity of the worker, shared with its pool children.
        hostname: the worker's node name.
        executing: returns the ids of the runs this worker has messages for; None when it executes none.
        reserved: returns how many messages it holds that no child has started.
        serves: whether it takes part in the services, or only keeps its worker alive.
    """

    def __init__(
        self,
        app: Celery,
        store: Store,
        *,
        token: uuid.UUID,
        hostname: str,
        executing: Callable[[], set[str]] | None = None,
        reserved: Callable[[], int] = lambda: 0,
        serves: bool = True,
    ) -> None:
        self._app = app
        self._store = store
        self._token = token
        self._hostname = hostname
        self._executing = executing
        self._reserved = reserved
        self._serves = serves
        lease = store.settings.lease
        self._lease = timedelta(seconds=lease)
        self._beat_every = lease / 3
        self._watch_every = lease / 6
        self._watch = DeathWatch(self._lease, longest_gap=self._lease)
        self._term: int | None = None
        self._suspects: set[tuple[str, uuid.UUID]] = set()
        self._next_beat = self._next_watch = 0.0
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, timeout: float = 30.0) -> None:
        """Start the thread; return when the worker's row is there, or after `timeout` seconds without it."""
        self._thread = threading.Thread(target=self.run, name="celery-durable-keeper", daemon=True)
        self._thread.start()
        if not self._ready.wait(timeout):
            logger.error("Postgres does not answer: this worker claims nothing until it does")

    def stop(self) -> None:
        """End the worker cleanly: its leases are handed on at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def run(self) -> None:
        """Serve until stopped, through any outage."""
        told = False
        while not self._stop.is_set():
            try:
                with self._store.connections.dedicated() as connection:
                    told = False
                    self._serve(self._store.keeper(connection))
            except PASSING as error:
                if not told:
                    logger.warning("The keeper lost Postgres and tries again: %s", error)
                    told = True
                self._interrupted()
            except StoreError:
                logger.exception("The keeper cannot work with this database")
                self._interrupted()
            except Exception:
                logger.exception("The keeper stumbled and goes on")
                self._interrupted()

    def _interrupted(self) -> None:
        self._watch.forget()
        self._term = None
        self._stop.wait(_OUTAGE_PAUSE)

    def _serve(self, keeper: KeeperStore) -> None:
        self._register(keeper)
        self._ready.set()
        while not self._stop.is_set():
            self.run_once(keeper)
            self._stop.wait(self._pause)
        handed_on = keeper.retire(self._token)
        if handed_on:
            logger.info("Handed on %d runs", len(handed_on))

    def _register(self, keeper: KeeperStore) -> None:
        keeper.register(
            self._token, hostname=self._hostname, pid=os.getpid(), version=version("celery-durable")
        )

    def run_once(self, keeper: KeeperStore) -> dict[str, int]:
        """Beat if it is time, and do what there is to do; return counts by service."""
        self._pause = _TICK
        counts: dict[str, int] = {}
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + self._beat_every
            counts.update(self._beat(keeper))
        if self._term is None:
            self._pause = max(0.0, min(self._next_beat - time.monotonic(), self._beat_every))
            return counts
        if now >= self._next_watch:
            self._next_watch = now + self._watch_every
            counts.update(self._take_over(keeper))
        if self._term is not None:
            counts.update(self._lead(keeper))
        return counts

    def _beat(self, keeper: KeeperStore) -> dict[str, int]:
        backlog = keeper.beat(self._token, reserved=self._reserved())
        if backlog is None:
            logger.error("%s was declared dead: it begins anew, its runs are elsewhere", self._hostname)
            self._register(keeper)
        counts = {"strays": self._release_strays()}
        if not self._serves:
            return counts
        self._watch.observe(*keeper.beats())
        if self._term is None:
            self._term = keeper.lead(self._token, self._lease / 2)
        if backlog and self._term is None:
            counts["woken"] = self._drain(lambda: services.wake(self._app, keeper))
            counts["published"] = self._drain(lambda: services.publish_unpublished(self._app, keeper))
        return counts

    def _release_strays(self) -> int:
        """Hand on runs of this worker that nobody here executes: seen twice, so not just on their way."""
        if self._executing is None:
            return 0
        executing = self._executing()
        idle = {run for run in self._store.runs.owned(self._token) if run[0] not in executing}
        strays, self._suspects = idle & self._suspects, idle
        if strays:
            logger.warning("Releasing %d runs whose release did not reach the store", len(strays))
            return len(self._store.runs.release_strays(self._token, [run for run, _ in strays]))
        return 0

    def _take_over(self, keeper: KeeperStore) -> dict[str, int]:
        self._term = keeper.lead(self._token, self._lease / 2)
        if self._term is None:
            return {}
        limit = self._store.settings.max_recoveries
        return {
            "recovered": self._drain(
                lambda: services.recover(self._app, keeper, self._term or 0, self._watch, limit)
            )
        }

    def _lead(self, keeper: KeeperStore) -> dict[str, int]:
        look = keeper.look(self._term or 0)
        if not look.leading:
            self._term = None
            return {}
        counts = self._due(keeper, look)
        if look.unclaimed:
            counts["expired"] = services.expire(keeper)
            counts["lost"] = self._find_lost(keeper)
        if look.unreported:
            counts["reported"] = services.report_failures(self._app, keeper)
        if look.outbox:
            counts["outbox"] = services.publish_outbox(self._app, keeper)
        if look.next_timer is not None:
            self._pause = min(self._pause, max(look.next_timer, 0.005))
        return counts

    def _due(self, keeper: KeeperStore, look: Look) -> dict[str, int]:
        counts = {}
        if look.next_timer is not None and look.next_timer <= 0:
            counts["woken"] = self._drain(lambda: services.wake(self._app, keeper))
        if look.unpublished:
            counts["published"] = self._drain(lambda: services.publish_unpublished(self._app, keeper))
        return counts

    def _find_lost(self, keeper: KeeperStore) -> int:
        found = lost.find_lost(
            self._app,
            keeper,
            lost_after=timedelta(seconds=self._store.settings.lost_after),
            grace=timedelta(seconds=min(5.0, self._store.settings.check_interval)),
        )
        if found:
            logger.warning("%d messages were lost by the broker: sent again", len(found))
            services.publish(self._app, keeper, found)
        return len(found)

    def _drain(self, service: Callable[[], int]) -> int:
        """Run a service as long as it fills its batch, but not past the next heartbeat."""
        total = 0
        while not self._stop.is_set():
            done = service()
            total += done
            if done < services.BATCH or time.monotonic() >= self._next_beat:
                if done == services.BATCH:
                    self._pause = 0.0
                break
        return total

    _pause: float = _TICK


def run_standalone(app: Celery, stop: threading.Event | None = None) -> None:
    """Run the keeper in the foreground until `stop` is set: `celery -A app durable keeper`."""
    backend: Any = app.backend
    store: Store = backend.store
    keeper = Keeper(app, store, token=uuid.uuid4(), hostname=f"keeper@{socket.gethostname()}")
    keeper.start()
    try:
        (stop or threading.Event()).wait()
    finally:
        keeper.stop()
