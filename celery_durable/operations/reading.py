"""Looking at runs: one, many, all of them in numbers."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery_durable.operations.exports import exported
from celery_durable.operations.outcomes import checked_id, unknown
from celery_durable.operations.stores import store_of
from celery_durable.run import RunState
from celery_durable.store.inspection import Filter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from celery import Celery

    from celery_durable.operations.exports import Redact
    from celery_durable.store import Store
    from celery_durable.store.views import Count, Match, Page, RunView, Stats


class RunsInView:
    """What `Runs` says and does not change.

    Arguments:
        app: a Celery app with a durable result backend.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app

    @cached_property
    def _store(self) -> Store:
        return store_of(self._app)

    def get(self, run_id: str) -> RunView:
        """Return everything that is known of a run but its payloads.

        Raises `RunNotFoundError` for an id that no run has.
        """
        run = self._store.inspection.get(checked_id(run_id))
        if run is None:
            raise unknown(run_id)
        return run

    def list(
        self,
        *,
        state: str | RunState | Sequence[str | RunState] | None = None,
        task: str | None = None,
        reason: str | None = None,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
        worker: str | None = None,
        has_error: bool | None = None,
        limit: int = 50,
        before: int | None = None,
    ) -> Page:
        """Return the newest runs that match, and where the next page begins.

        Arguments:
            state: one stored state or several: `pending`, `running`, `waiting`, `cancelling`, `succeeded`,
                `failed`, `cancelled`.
            task: the task's full name.
            reason: why a run waits or ended, such as `retry`, `timer`, `exhausted`, `revoked`, `expired`.
            since: runs created then or later; a `timedelta` counts back from now.
            until: runs created before then; a `timedelta` counts back from now.
            worker: node name of the worker that executes them now.
            has_error: runs that failed or wait for a retry; False for all others.
            limit: how many at most.
            before: `next` of the page before.

        Raises `ValueError` for a state that does not exist.
        """
        states = [state] if isinstance(state, str) else state
        wanted = Filter(
            states=None if states is None else [RunState(one) for one in states],
            task=task,
            reason=reason,
            since=since,
            until=until,
            worker=worker,
            has_error=has_error,
        )
        return self._store.inspection.list(wanted, limit=limit, before=before)

    def counts(self) -> Sequence[Count]:
        """Return how many runs are in each state, for each reason."""
        return self._store.inspection.counts()

    def find(self, prefix: str) -> Sequence[Match]:
        """Return up to six runs whose id begins with `prefix`; only one if that is its whole id."""
        return self._store.inspection.resolve(checked_id(prefix))

    def stats(self, *, window: timedelta = timedelta(hours=1)) -> Stats:
        """Return how the system is doing: runs by state, queues, workers, and each task's last `window`."""
        return self._store.inspection.stats(window)

    def export(self, run_id: str, *, payloads: bool = True, redact: Redact | None = None) -> dict[str, Any]:
        """Return a run with its whole history as plain JSON values.

        Arguments:
            run_id: the run's id.
            payloads: whether to include arguments, results and the values of steps.
            redact: called with a path such as `("steps", "charge", "output")` and the value there, for every
                payload; what it returns is exported in its place.

        Raises `RunNotFoundError` for an id that no run has.
        """
        return exported(self._app, self._store, self.get(run_id), payloads=payloads, redact=redact)
