"""A run's message in a worker's main process: what becomes of it when the pool child is lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from celery_durable import hooks, texts
from celery_durable.exceptions import ExhaustedError, StoreError

if TYPE_CHECKING:
    from celery_durable.backend import DurableBackend
    from celery_durable.store import Store

logger = logging.getLogger(__name__)

_BUDGET = 3.0  # seconds that the main process may wait for Postgres; its event loop stands still meanwhile


class DurableRequest(Request):
    """Celery's request; a lost child hands its run on instead of failing it."""

    if TYPE_CHECKING:  # what Celery's class has and its stubs leave out
        _context: Any
        _already_revoked: bool
        _already_cancelled: bool
        stamped_headers: list[str]

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001  (Celery's signature)
        """Hand a run on whose child is killed by the hard time limit; a soft one is the body's business."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        state.task_ready(self)
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", timeout, self.name, self.id)
        self._hand_on(TimeLimitExceeded(timeout))

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Hand a run on whose child died; everything else is Celery's own way."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)):
            if self._already_revoked or self._already_cancelled:
                super().on_failure(exc_info, send_failed_event, return_ok)
                return
            state.task_ready(self)
            self._hand_on(error)
            return
        super().on_failure(exc_info, send_failed_event, return_ok)

    def revoked(self) -> bool:
        """Whether this run was revoked and is over; not if it was resumed, or takes back what it has done."""
        stamped = state.revoked_stamps and self.stamped_headers
        remembered = not self._already_revoked and (self.id in state.revoked or stamped)
        if remembered and self._goes_on():
            state.revoked.discard(self.id)
            return False
        revoked: Any = getattr(super(), "revoked")  # noqa: B009  (the stubs do not know it)
        return bool(revoked())

    def _goes_on(self) -> bool:
        try:
            return self._store.runs.goes_on(self.id, budget=_BUDGET)
        except StoreError:
            return False

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001
        if terminated:
            try:
                self._store.runs.revoke(self.id, token=hooks.worker_token(), terminated=True)
            except StoreError:
                logger.exception("%s[%s] was terminated; its run could not be ended", self.name, self.id)
        announce: Any = getattr(super(), "_announce_revoked")  # noqa: B009  (the stubs do not know it)
        announce(reason, terminated, signum, expired)

    @property
    def _store(self) -> Store:
        store: Store = self._backend.store
        return store

    @property
    def _backend(self) -> DurableBackend:
        backend: Any = self.task.backend
        return backend  # type: ignore[no-any-return]

    def _hand_on(self, error: BaseException) -> None:
        """Put the run back to pending and its message back to the broker, unless this was once too often."""
        backend = self._backend
        settings = self._store.settings
        exhausted = ExhaustedError.after(self.id, settings.max_recoveries, texts.line(error))
        try:
            row = self._store.runs.recover_child(
                self.id,
                token=hooks.worker_token(),
                pid=None if self.worker_pid is None else int(self.worker_pid),
                error=texts.line(error),
                max_recoveries=settings.max_recoveries,
                result=backend.error_meta(exhausted),
                result_type=backend.content_type,
                budget=_BUDGET,
            )
        except StoreError:
            logger.exception("%s[%s] lost its child; the keeper hands its run on", self.name, self.id)
            row = None
        if row is None:
            # Not ours any more, or it died before it claimed: if it is pending, the keeper finds it.
            self.acknowledge()
        elif row["state"] == "pending":
            logger.warning("%s[%s] lost its child (%s); the run goes on elsewhere", self.name, self.id, error)
            self.reject(requeue=True)
        else:
            self._end(backend, exhausted, row["state"])

    def _end(self, backend: DurableBackend, exhausted: ExhaustedError, state: str) -> None:
        if state == "failed":
            logger.error("%s[%s] failed: %s", self.name, self.id, exhausted)
            self._context.durable = True  # its outcome is stored: what is left is to tell it
            backend.mark_as_failure(self.id, exhausted, request=self._context)
            self.send_event("task-failed", exception=repr(exhausted), traceback="")
        self.acknowledge()
