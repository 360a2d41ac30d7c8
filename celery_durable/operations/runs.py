"""`Runs`: look at runs, cancel them, resume them, fork them, delete them."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable.envelope import publish_stored
from celery_durable.exceptions import ConfigurationError, RunStateError
from celery_durable.operations import forks, selection
from celery_durable.operations.forks import Fork
from celery_durable.operations.outcomes import (
    Outcome,
    checked_id,
    not_cancelled,
    not_resumed,
    not_retried,
    only,
    outcomes_of,
    this_user,
    unknown,
)
from celery_durable.operations.reading import RunsInView
from celery_durable.operations.sending import deliver
from celery_durable.store.inspection import Filter
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery_durable.run import RunState
    from celery_durable.store.views import Change


class Runs(RunsInView):
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

    def cancel(
        self,
        run_id: str,
        *,
        reason: str | None = None,
        actor: str | None = None,
        terminate: bool = False,
    ) -> Outcome:
        """End a run for good: at once if nobody executes it, else at the next step or wait of its body.

        Its result is REVOKED then. A run that succeeds before it meets a step stays succeeded. Its children
        are cancelled, too, except for detached ones.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            reason: kept with the run, for those who will ask.
            actor: who wants it; the user of this process by default.
            terminate: interrupt a step that is being executed, its children's as well, as Celery's
                `revoke(terminate=True)` does: the pool process is killed, so that the body cannot clean up.

        Raises `RunNotFoundError`, and `RunStateError` for a run that is over.
        """
        return only(self.cancel_many([run_id], reason=reason, actor=actor, terminate=terminate))

    def resume(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> Outcome:
        """Execute a failed or cancelled run again: finished steps are kept, retries count from zero.

        This opens a new generation of the run; who was told of its failure is not told again. Where it comes
        to a wait for children that did not all succeed, and had got no further, these are resumed, too, and
        waited for again.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            reason: kept with the run, for those who will ask.
            actor: who wants it; the user of this process by default.

        Raises `RunNotFoundError`, and `RunStateError` for a run that succeeded or is not over.
        """
        return only(self.resume_many([run_id], reason=reason, actor=actor))

    def retry_now(self, run_id: str, *, reason: str | None = None, actor: str | None = None) -> Outcome:
        """Try a run again at once that waits for a retry.

        Arguments:
            run_id: the run's id, which is its Celery task id.
            reason: kept with the run, for those who will ask.
            actor: who wants it; the user of this process by default.

        Raises `RunNotFoundError`, and `RunStateError` for a run that does not wait for a retry.
        """
        return only(self.retry_now_many([run_id], reason=reason, actor=actor))

    def retry_now_many(
        self,
        runs: Sequence[str] | Filter,
        *,
        reason: str | None = None,
        actor: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Sequence[Outcome]:
        """Try runs again at once that wait for a retry; return an outcome for each.

        Arguments are those of `resume_many`.
        """
        store = self._store
        late: set[str] = set()

        def retry(batch: Sequence[str]) -> Sequence[Change]:
            changes = store.inspection.retry_now(
                batch,
                operation=uuid.uuid4(),
                actor=actor or this_user(),
                reason=reason,
                check=store.settings.check,
            )
            late.update(self._publish(_messages(changes)))
            return changes

        return self._each(
            replace(runs, reason="retry") if isinstance(runs, Filter) and not runs.says_nothing else runs,
            selection.RETRYABLE,
            lambda ids: outcomes_of(ids, retry, not_retried, late),
            dry_run=dry_run,
            progress=progress,
        )

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
        self,
        runs: Sequence[str] | Filter,
        *,
        reason: str | None = None,
        actor: str | None = None,
        terminate: bool = False,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Sequence[Outcome]:
        """Cancel runs, each as far as its state allows; return an outcome for each.

        Arguments are those of `cancel` and `resume_many`.
        """
        inspection = self._store.inspection

        def cancel(batch: Sequence[str]) -> Sequence[Change]:
            ask = partial(inspection.cancel, actor=actor or this_user(), reason=reason)
            changes = ask(batch, operation=uuid.uuid4(), terminate=terminate)
            if terminate and (executing := inspection.executing(batch)):
                ask(tuple({*executing} - {*batch}), operation=uuid.uuid4(), cause="parent")
                self._app.control.revoke(executing, terminate=True)
            return changes

        return self._each(
            runs,
            selection.CANCELLABLE,
            lambda ids: outcomes_of(ids, cancel, not_cancelled),
            dry_run=dry_run,
            progress=progress,
        )

    def resume_many(
        self,
        runs: Sequence[str] | Filter,
        *,
        reason: str | None = None,
        actor: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Sequence[Outcome]:
        """Resume runs, each as far as its state allows; return an outcome for each.

        Arguments:
            runs: ids, whose outcomes come in their order; or a `Filter`, which means all failed and cancelled
                runs that match it, the newest first.
            reason: kept with each run, for those who will ask.
            actor: who wants it; the user of this process by default.
            dry_run: change nothing, only return which runs a filter means.
            progress: called with the number of runs done so far, after each batch of 500.

        Raises `ValueError` for a filter that is empty.
        """
        store = self._store
        late: set[str] = set()

        def resume(batch: Sequence[str]) -> Sequence[Change]:
            changes = store.inspection.resume(
                batch,
                operation=uuid.uuid4(),
                actor=actor or this_user(),
                reason=reason,
                check=store.settings.check,
                version=store.settings.version,
            )
            late.update(self._publish(_messages(changes)))
            return changes

        outcomes = self._each(
            runs,
            selection.RESUMABLE,
            lambda ids: outcomes_of(ids, resume, not_resumed, late),
            dry_run=dry_run,
            progress=progress,
        )
        return selection.with_children(store.inspection, outcomes) if dry_run else outcomes

    def children_to_resume(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many children a resume of each run starts again; only those with any."""
        return selection.children_of(self._store.inspection, [checked_id(one) for one in ids])

    def _each(
        self,
        runs: Sequence[str] | Filter,
        possible: frozenset[RunState],
        change: Callable[[Sequence[str]], Sequence[Outcome]],
        *,
        dry_run: bool,
        progress: Callable[[int], None] | None,
    ) -> Sequence[Outcome]:
        told: Any = runs
        if isinstance(told, str) or not isinstance(told, (Filter, Iterable)):
            what = "one id" if isinstance(told, str) else "no list"
            message = f"{runs!r} is {what}: give a list of ids, or a Filter"
            raise TypeError(message)
        if isinstance(runs, Filter):
            return selection.in_bulk(
                self._store.inspection, runs, possible, change, dry_run=dry_run, progress=progress
            )
        if dry_run:
            message = "A dry run says which runs a filter means: give it a Filter instead of ids"
            raise ValueError(message)
        return change(runs)

    def _publish(self, stored: Sequence[Stored]) -> Sequence[str]:
        failed = publish_stored(self._app, stored)
        if failed:
            self._store.runs.unpublish(failed, timedelta(0))
        return failed

    def fork(
        self,
        run_id: str,
        *,
        from_step: str | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        reason: str | None = None,
        actor: str | None = None,
    ) -> Fork:
        """Start a new run with the checkpoints that another one stored before a step.

        The source is left as it is, whatever its state. The fork has its random numbers and, as far as steps
        are kept, its times; its id, its children and its links are its own. It has no parent and takes no
        part in the source's group or chord.

        Arguments:
            run_id: the source's id.
            from_step: key of the first step to run again. Default: the first one in `overrides`, else the
                very first.
            args: other positional arguments than the source's.
            kwargs: other keyword arguments than the source's.
            overrides: values for stored steps, by key. These steps do not run.
            dry_run: store nothing, only return what would be kept and what would run again.
            reason: kept with both runs, for those who will ask.
            actor: who wants it; the user of this process by default.

        Raises `RunNotFoundError`, `StepNotFoundError` for a step that the source has not stored,
        `SerializationError` for a value that cannot be stored, or of a step that cannot have another, and
        `TypeError` for arguments that the task does not take. A dry run raises the same.
        """
        store, values = self._store, dict(overrides or {})
        found = store.forks.read(checked_id(run_id))
        if found is None:
            raise unknown(run_id)
        source, steps = found
        forks.check_arguments(self._app, source, args, kwargs)
        plan = forks.plan(source, steps, from_step, values)
        planned = Fork(None, source.id, plan.kept, plan.overridden, plan.again, taken_back=source.taken_back)
        encoded = forks.encoded(self._app, steps, values)
        if dry_run and args is None and kwargs is None:
            return planned
        new = forks.new_fork(self._app, source, plan, encoded, args=args, kwargs=kwargs)
        if dry_run:
            return planned
        detail = {"from_step": from_step, "overridden": plan.overridden, "reason": reason}
        if not store.forks.fork(source, new, actor=actor or this_user(), detail=detail):
            message = f"The run {run_id} changed while it was being forked, or was deleted: try again"
            raise RunStateError(message, run_id=run_id, state=source.state)
        late = self._publish([Stored(new.id, new.message, new.body)])
        return replace(planned, id=new.id, published=not late)

    def prune(
        self,
        *,
        older_than: timedelta | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete runs that ended long ago, whole trees of them, with all that belongs to them.

        Arguments:
            older_than: how long ago; `durable_retention` by default, else `result_expires`.
            dry_run: delete nothing, only count.
            progress: called with the number of runs deleted so far, after each batch.

        Returns the number of runs. Raises `ConfigurationError` when nothing says how long runs are kept.
        """
        store = self._store
        kept: float | None = store.settings.retention
        seconds = self._app.backend.expires if kept is None else kept  # type: ignore[attr-defined]
        if older_than is None and not seconds:
            message = "Neither durable_retention nor result_expires says how long runs are kept: name an age"
            raise ConfigurationError(message, setting="durable_retention")
        age = older_than if older_than is not None else timedelta(seconds=seconds)
        return store.prunable(age) if dry_run else store.prune(age, progress=progress)


def _messages(changes: Sequence[Change]) -> Sequence[Stored]:
    return [
        Stored(change.id, change.message, change.body)
        for change in changes
        if change.changed and change.message is not None and change.body is not None
    ]
