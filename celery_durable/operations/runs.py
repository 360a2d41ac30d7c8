"""`Runs`: look at runs, cancel them, resume them."""

from __future__ import annotations

import getpass
import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery_durable.envelope import publish_stored
from celery_durable.exceptions import RunNotFoundError, RunStateError
from celery_durable.operations.sending import deliver
from celery_durable.operations.stores import store_of
from celery_durable.run import RunState
from celery_durable.store.inspection import Filter
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from celery import Celery

    from celery_durable.exceptions import DurableError
    from celery_durable.store import Store
    from celery_durable.store.views import Change, Count, Match, Page, RunView

_AT_ONCE = 500


@dataclass(frozen=True)
class Outcome:
    """What an operation made of one run.

    Attributes:
        before: the state in which it was found, None for an unknown id.
        state: the state it is in now. After a cancel `running` means: asked to stop, at its next step.
        changed: whether this operation changed anything; a cancel asked for before changes nothing again.
        published: False when the broker did not take the message of a resumed run; the keeper sends it later.
        error: why the run was left alone, or None.
    """

    id: str
    before: RunState | None
    state: RunState | None
    changed: bool
    published: bool = True
    error: DurableError | None = None


class Runs:
    """Operations on the runs of an app.

    Arguments:
        app: a Celery app whose result backend is `durable+postgresql://` or `durable+embedded://`.

    Example:
        >>> runs = Runs(app)                                        # doctest: +SKIP
        >>> for run in runs.list(state="failed", limit=10).runs:    # doctest: +SKIP
        ...     runs.resume(run.id, reason="the API is back")

    Raises `ConfigurationError` at the first use when the result backend is another one, and
    `SchemaMissingError` when the database was not set up with `celery -A <app> durable init`.
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
        run = self._store.inspection.get(run_id)
        if run is None:
            raise _unknown(run_id)
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
        return self._store.inspection.resolve(prefix)

    def cancel(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> Outcome:
        """End a run for good: at once if nobody executes it, else at the next step of its body.

        Its result is REVOKED then. A run that succeeds before it meets a step stays succeeded.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            reason: kept with the run, for those who will ask.
            actor: who wants it; the user of this process by default.

        Raises `RunNotFoundError`, and `RunStateError` for a run that is over.
        """
        return _only(self.cancel_many([run_id], reason=reason, actor=actor))

    def resume(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> Outcome:
        """Execute a failed or cancelled run again: finished steps are kept, retries count from zero.

        This opens a new generation of the run; who was told of its failure is not told again.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            reason: kept with the run, for those who will ask.
            actor: who wants it; the user of this process by default.

        Raises `RunNotFoundError`, and `RunStateError` for a run that succeeded or is not over.
        """
        return _only(self.resume_many([run_id], reason=reason, actor=actor))

    def signal(
        self,
        run_id: str,
        name: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        actor: str | None = None,
    ) -> bool:
        """Send a signal to a run, as `send_signal` does; return False if one with this key was there already.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            name: the name that the run waits for.
            payload: any value that a step could return.
            idempotency_key: at most one signal of this name and key is delivered to the run.
            actor: who sends it; the user of this process by default.

        Raises `RunNotFoundError`, and `RunStateError` for a run that is over.
        """
        return deliver(self._app, run_id, name, payload, once=idempotency_key, actor=actor or this_user())

    def cancel_many(
        self, ids: Sequence[str], *, reason: str | None = None, actor: str | None = None
    ) -> Sequence[Outcome]:
        """Cancel runs, each as far as its state allows; return an outcome for each id, in their order."""
        inspection = self._store.inspection

        def cancel(batch: Sequence[str]) -> Sequence[Change]:
            return inspection.cancel(batch, operation=uuid.uuid4(), actor=actor or this_user(), reason=reason)

        return _outcomes(ids, cancel, _not_cancelled)

    def resume_many(
        self, ids: Sequence[str], *, reason: str | None = None, actor: str | None = None
    ) -> Sequence[Outcome]:
        """Resume runs, each as far as its state allows; return an outcome for each id, in their order."""
        store = self._store
        late: set[str] = set()

        def resume(batch: Sequence[str]) -> Sequence[Change]:
            changes = store.inspection.resume(
                batch,
                operation=uuid.uuid4(),
                actor=actor or this_user(),
                reason=reason,
                check=store.settings.check,
            )
            late.update(self._publish(changes))
            return changes

        return _outcomes(ids, resume, _not_resumed, late)

    def _publish(self, changes: Sequence[Change]) -> Sequence[str]:
        stored = [
            Stored(change.id, change.message, change.body)
            for change in changes
            if change.changed and change.message is not None and change.body is not None
        ]
        failed = publish_stored(self._app, stored)
        if failed:
            self._store.runs.unpublish(failed, timedelta(0))
        return failed


def _outcomes(
    ids: Sequence[str],
    operation: Callable[[Sequence[str]], Sequence[Change]],
    refusal: Callable[[Change], RunStateError | None],
    late: set[str] | frozenset[str] = frozenset(),
) -> Sequence[Outcome]:
    distinct = tuple(dict.fromkeys(ids))
    known: dict[str, Outcome] = {}
    for start in range(0, len(distinct), _AT_ONCE):
        for change in operation(distinct[start : start + _AT_ONCE]):
            known[change.id] = Outcome(
                change.id,
                change.before,
                change.state,
                change.changed,
                published=change.id not in late,
                error=None if change.changed else refusal(change),
            )
    return [
        known.get(run_id) or Outcome(run_id, None, None, changed=False, error=_unknown(run_id))
        for run_id in distinct
    ]


def _only(outcomes: Sequence[Outcome]) -> Outcome:
    if outcomes[0].error is not None:
        raise outcomes[0].error
    return outcomes[0]


def _unknown(run_id: str) -> RunNotFoundError:
    message = (
        f"No run has the id {run_id!r}: it was never a durable task's, or it was deleted after "
        f"`durable_retention`. `celery -A <app> durable runs` lists those there are"
    )
    return RunNotFoundError(message, run_id=run_id)


def _not_cancelled(change: Change) -> RunStateError | None:
    if change.state in (RunState.RUNNING, RunState.CANCELLING):
        return None  # asked for before
    message = f"The run {change.id} is over, it has {change.state}: there is nothing left to cancel"
    if change.state is RunState.CANCELLED:
        message = f"The run {change.id} is cancelled already"
    return RunStateError(message, run_id=change.id, state=str(change.state))


_WHY_NOT_RESUMED = {
    RunState.SUCCEEDED: "call the task again for another run",
    RunState.PENDING: "it waits for a worker to take it",
    RunState.RUNNING: "it is being executed; cancel it first if it hangs",
    RunState.WAITING: "it comes back by itself; `durable show` says when",
    RunState.CANCELLING: "it is being cancelled; resume it when that is over",
}


def _not_resumed(change: Change) -> RunStateError:
    hint = _WHY_NOT_RESUMED.get(change.state or RunState.PENDING, "look again")
    message = f"Only failed and cancelled runs can be resumed. The run {change.id} is {change.state}: {hint}"
    return RunStateError(message, run_id=change.id, state=str(change.state))


def this_user() -> str:
    """Return the name of the operating system's user this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has a number only
        return f"uid {os.getuid()}"
