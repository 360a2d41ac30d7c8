"""The keeper: a heartbeat that nothing holds up, and beside it the services, which talk to the broker."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import ExhaustedError
from celery_durable.keeper import lost, services
from celery_durable.keeper.heartbeat import Heartbeat
from celery_durable.keeper.thread import KeeperThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore, Look

logger = logging.getLogger(__name__)

_TICK = 1.0
_SLOT_TICK = 0.05  # between two looks where slots come free one behind the other, as those of a rate do
_FIRST_BATCH = 100
_AT_A_TIME = 10.0  # seconds for which one service may keep filling its batches while others wait


class Services(KeeperThread):
    """What moves runs on: timers, unpublished and lost messages, links and callbacks that nobody sent.

    Arguments:
        app: the Celery app, for publishing.
        store: the store.
        heartbeat: says whether this worker leads.
    """

    def __init__(self, app: Celery, store: Store, heartbeat: Heartbeat) -> None:
        super().__init__(store, "celery-durable-services")
        self._app = app
        self._heartbeat = heartbeat
        self._pause = _TICK
        self._after = 0  # the last parent that was looked at
        self._next_slot = ""
        self._batch = _FIRST_BATCH

    @property
    def pause(self) -> float:
        """Seconds until the next timer, or a tick."""
        return self._pause

    def run_once(self, keeper: KeeperStore) -> dict[str, int]:
        """Do what there is to do; return counts by service."""
        self._pause = _TICK
        term = self._heartbeat.term
        if term is not None:
            return self._lead(keeper, term)
        if self._heartbeat.backlog:
            return {
                "woken": self._drain(partial(services.wake, self._app, keeper)),
                "published": self._drain(partial(services.publish_unpublished, self._app, keeper)),
            }
        return {}

    def _lead(self, keeper: KeeperStore, term: int) -> dict[str, int]:
        look = keeper.look(term)
        if not look.leading:
            return {}
        return {**self._move_on(keeper, look), **self._follow_up(keeper, look)}

    def _move_on(self, keeper: KeeperStore, look: Look) -> dict[str, int]:
        """Wake and publish what is due: nobody else does."""
        counts: dict[str, int] = {}
        if look.next_timer is not None:
            if look.next_timer > 0:
                self._pause = min(_TICK, max(look.next_timer, 0.005))
            else:
                counts["woken"] = self._drain(partial(services.wake, self._app, keeper))
        if look.unpublished:
            counts["published"] = self._drain(partial(services.publish_unpublished, self._app, keeper))
        if look.unclaimed:
            counts["expired"] = services.expire(keeper)
            counts["lost"] = self._find_lost(keeper)
        return counts

    def _follow_up(self, keeper: KeeperStore, look: Look) -> dict[str, int]:
        """Do what somebody did not live to do behind a commit."""
        counts: dict[str, int] = {}
        if look.overdue:
            counts["overdue"] = self._drain(partial(services.enforce_deadlines, keeper))
        if look.cascading:
            counts["cascaded"] = services.cascade(keeper)
        if look.parents:
            counts["parents"], self._after = services.wake_parents(self._app, keeper, self._after)
        if look.unreported:
            counts["reported"] = services.report_endings(self._app, keeper)
        if look.chords:
            counts["chords"] = services.look_at_chords(self._app, keeper)
        if look.slots:
            counts["granted"] = self._grant_slots(keeper)
        if look.outbox:
            counts["outbox"] = services.publish_outbox(self._app, keeper)
        return counts

    def _grant_slots(self, keeper: KeeperStore) -> int:
        """Wake who waits for a slot that nobody handed on: its holder was killed, or its while is over.

        One batch of keys at each look, so that no number of keys holds up the rest.
        """
        woken, self._next_slot, opens_in = services.grant_slots(self._app, keeper, self._next_slot)
        if self._next_slot:
            self._pause = 0.0
        elif woken or opens_in is not None:
            self._pause = min(self._pause, max(opens_in or 0.0, _SLOT_TICK))
        return woken

    def _find_lost(self, keeper: KeeperStore) -> int:
        settings = self.store.settings
        found = lost.find_lost(
            self._app,
            keeper,
            lost_after=timedelta(seconds=settings.lost_after),
            grace=timedelta(seconds=min(5.0, settings.check_interval)),
        )
        if found:
            logger.warning("%d messages were lost by the broker: sent again", len(found))
            services.publish(self._app, keeper, found)
        return len(found)

    def _drain(self, service: Callable[[int], int]) -> int:
        """Run a service as long as it fills its batch, but not so long that the others have to wait."""
        total, now = 0, time.monotonic()
        until = now + _AT_A_TIME
        while not self.stopping.is_set():
            began, batch = now, self._batch
            done = service(batch)
            total += done
            if done < batch:
                break
            now = time.monotonic()
            self._batch = services.next_batch(done, now - began)
            if now >= until:
                self._pause = 0.0
                break
        if total:
            self._pause = min(self._pause, 0.005)  # the next timer may be close behind
        return total


class Keeper:
    """One worker's heartbeat, and its share of the services.

    Arguments:
        app: the Celery app.
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
        self.heartbeat = Heartbeat(
            store,
            token=token,
            hostname=hostname,
            executing=executing,
            reserved=reserved,
            leads=serves,
            exhausted=lambda: _exhausted(app, store),
        )
        self.services = Services(app, store, self.heartbeat) if serves else None

    def start(self, timeout: float = 30.0) -> None:
        """Start the threads; return when the worker's row is there, or after `timeout` seconds without it."""
        self.heartbeat.start()
        if not self.heartbeat.alive.wait(timeout):
            logger.error("Postgres does not answer: this worker claims nothing until it does")
        if self.services is not None:
            self.services.start()

    def stop(self) -> None:
        """End the worker cleanly: its leases are handed on at once."""
        if self.services is not None:
            self.services.stop(timeout=2)
        self.heartbeat.stop(timeout=10)


def _exhausted(app: Celery, store: Store) -> tuple[bytes, str]:
    backend: Any = app.backend
    error = ExhaustedError.after("<run>", store.settings.max_recoveries, "the worker was lost")
    return backend.error_meta(error), backend.content_type


def run_standalone(app: Celery, stop: threading.Event | None = None) -> None:
    """Run the keeper in the foreground until `stop` is set: `celery -A app durable keeper`."""
    backend: Any = app.backend
    keeper = Keeper(app, backend.store, token=uuid.uuid4(), hostname=f"keeper@{socket.gethostname()}")
    keeper.start()
    try:
        (stop or threading.Event()).wait()
    finally:
        keeper.stop()
