"""How an attempt leaves its run: finished, waiting for a retry, handed on, replaced, or lost."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry

from celery_durable import envelope, hooks, links, outgoing, texts
from celery_durable.backend import durable_backend, has_dependents, tell_revoked
from celery_durable.compensating import Rollback, says_what_stands, what_stands
from celery_durable.exceptions import (
    DurableError,
    ExhaustedError,
    LeaseLostError,
    NondeterminismError,
    PayloadTooLargeError,
    StoreError,
    StoreUnavailableError,
)
from celery_durable.run import RunState
from celery_durable.seam import Continued, Suspended
from celery_durable.serialization.refusals import not_a_result
from celery_durable.store import in_hand
from celery_durable.store.writes import Finish, Finished, Release, Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.executor import Execution
    from celery_durable.run import Claim
    from celery_durable.store.writes import NewRun
    from celery_durable.task import DurableTask

logger = logging.getLogger(__name__)

_NOTHING_LEFT_TO_DISPATCH = None


class Settlement:
    """The last write of an attempt.

    Each method stores one outcome and returns or raises what tells Celery's tracer about it: `Ignore` where
    Celery has nothing more to do.

    Arguments:
        task: the task.
        request: Celery's request.
        execution: the attempt.
    """

    def __init__(self, task: DurableTask, request: Any, execution: Execution) -> None:
        self.task = task
        self.request = request
        self.execution = execution
        self.claim = execution.claim
        self.backend = durable_backend(task.app)
        self.runs = self.backend.store.runs

    # -- the body returned ------------------------------------------------------------------------------

    def succeeded(self, value: Any) -> None:
        """Finish the run with its part of a chord and the runs it starts; raise what kept its result back."""
        try:
            result = self._result(value)
            messages = links.of_success(self.task, self.request, self.execution, value)
            part = self.backend.part_of(self.request, states.SUCCESS, value)
        except StoreUnavailableError as error:  # a link of its chain had to be read
            raise self.dropped(error) from None
        except Exception as error:
            self._fail(error)
            raise
        finish = Finish(
            state=RunState.SUCCEEDED,
            result=result,
            result_type=self.backend.content_type,
            meta=self.backend.extra_meta(self.request, hidden=self._result_is_ignored),  # now with the links
        )
        finished: Finished = self._written(
            lambda: self.runs.finish(
                self.claim.key, self.claim.fence, finish, messages, part=part, child=self._child
            )
        )
        body, self.request.chord = self.request.chord, _NOTHING_LEFT_TO_DISPATCH
        self.request.callbacks = self.request.chain = _NOTHING_LEFT_TO_DISPATCH
        self._after_commit(
            lambda: outgoing.send_collected(self.task.app, self.backend.store, messages, finished.links)
        )
        self._wake(finished.woken)
        if part is not None and finished.chord is not None:
            look = finished.chord
            self._after_commit(lambda: self.backend.follow_chord(part.chord, look, self.claim.fence, body))

    def _result(self, value: Any) -> bytes | None:
        if self._result_is_ignored:
            return None
        try:
            result = self._encoded(value)
        except Exception as error:
            raise not_a_result(value, f"The result of {self.task.name}", self._takes) from error
        limit = self.backend.store.settings.max_payload
        if len(result) > limit:
            message = (
                f"The result of {self.task.name} is {len(result):,} bytes; durable_max_payload is {limit:,}"
            )
            raise PayloadTooLargeError(message, size=len(result), limit=limit)
        return result

    def _encoded(self, value: Any) -> bytes:
        return self.backend.encoded(self.backend.encode_result(value, states.SUCCESS))

    def _takes(self, value: Any) -> bool:
        with suppress(Exception):
            self._encoded(value)
            return True
        return False

    # -- the body raised --------------------------------------------------------------------------------

    def raised(self, error: Exception) -> None:
        """Store how a body that raised leaves its run."""
        if isinstance(error, Retry):
            self._retry(error)
        elif isinstance(error, Ignore) and isinstance(self.execution.retry, Retry):
            self._retry(self.execution.retry)
        elif isinstance(error, Ignore):
            self._ignored()
        elif isinstance(error, Reject) and getattr(error, "requeue", False):
            compensates = self.execution.compensates
            with in_hand.holding(None):  # the message goes back to its queue, not away
                self._release(Release(outcome="released", delay=timedelta(0), compensates=compensates))
        else:
            self._fail(error)

    def rolled_back(
        self, problem: DurableError | None, failed: Exception | None, *, undone: bool, unreported: bool
    ) -> str | None:
        """End a run that has taken back what it could, or failed to clean up; return its reason."""
        error = problem or failed
        result = None if error is None else self.backend.error_meta(error)
        reason: str | None = self._written(
            lambda: self.runs.rolled_back(
                self.claim.key,
                self.claim.fence,
                problem=None if problem is None else texts.line(problem),
                failed=None if failed is None else texts.line(failed),
                result=result,
                result_type=None if result is None else self.backend.content_type,
                undone=undone,
                unreported=unreported,
            )
        )
        if self._child is not None:
            self._wake(self._written(lambda: self.runs.waits.wake(self.claim)))
        return reason

    def _compensates(self, finish: Finish) -> bool:
        """Whether a body that has ended so is taken back first."""
        if finish.state not in (RunState.FAILED, RunState.CANCELLED) or not self.execution.compensations:
            return False
        # The code changed: nothing is taken back for that, the run is resumed when the code is mended.
        return finish.reason not in ("ignored", NondeterminismError.__name__)

    def _taken_back(self, finish: Finish, error: Exception | None) -> Exception:
        """Make the compensations; return what tells Celery the outcome."""
        try:
            return Rollback(self).of(finish, error)
        except Suspended as suspended:
            return self.suspended(suspended)
        except (LeaseLostError, StoreUnavailableError) as lost:
            return self.dropped(lost)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, NondeterminismError):
            says_what_stands(error, self.execution)
        try:
            finish = self._failure(error)
        except Exception as second:  # whatever is wrong with it: a run that cannot say why still fails
            logger.exception("%s: its error cannot be stored as it is", self._where)
            finish = self._failure(DurableError(f"{texts.line(error)} (as text only: {texts.line(second)})"))
        if not self._compensates(finish):
            self._finish(finish)
        elif (told := self._taken_back(finish, error)) is not error:
            raise told

    def _failure(self, error: Exception) -> Finish:
        hidden = self._result_is_ignored and not self.task.store_errors_even_if_ignored
        return Finish(
            state=RunState.FAILED,
            result=self.backend.error_meta(error),
            result_type=self.backend.content_type,
            traceback=texts.trace(error),
            meta=self.backend.extra_meta(self.request, hidden=hidden),
            error=self._told(error),
            reason=type(error).__name__ if isinstance(error, DurableError) else None,
            unreported=has_dependents(self.request),
            cleaned=self.execution.cleaned,
        )

    def _told(self, error: Exception) -> str:
        """Return an error in a line, with what stands if it kept the body from its history."""
        told = texts.line(error)
        if not self.execution.ahead or isinstance(error, NondeterminismError) or self.execution.compensations:
            return told
        return f"{told}. {what_stands(self.execution)}".rstrip(" .")

    def _retry(self, retry: Retry) -> None:
        successor, cause = self.execution.successor, retry.exc or retry
        changed = successor is not None and self.execution.rewritten
        revision = self.claim.revision + 1
        release = Release(
            outcome="retry",
            delay=_delay(retry, successor, self.task),
            reason="retry",
            publish=True,
            retries=self.claim.retries + 1,
            error=texts.line(cause),
            traceback=texts.trace(cause),
            result=self.backend.encoded(self.backend.encode_result(retry.exc, states.RETRY)),
            result_type=self.backend.content_type,
            body=successor.body if successor and changed else None,
            message=envelope.with_revision(successor.message, revision) if successor and changed else None,
            # A retry may be sent elsewhere: the keeper looks for its message where it went.
            queue=successor.queue if successor and changed else None,
            priority=successor.priority if successor and changed else None,
            discard="errors",
            compensates=self.execution.compensates,
        )
        self._release(release)

    def _ignored(self) -> None:
        """End a run that raised `Ignore`: replaced by another task, or over without a result."""
        if not self.execution.replaced:
            self._finish(Finish(state=RunState.CANCELLED, reason="ignored"))
        elif self.execution.successor is not None:
            self._replace(self.execution.successor)
        else:
            self._replace_by_others()

    def _replace(self, successor: NewRun) -> None:
        message = envelope.with_revision(successor.message, self.claim.revision + 1)
        release = Release(
            outcome="replaced",
            delay=successor.countdown or timedelta(0),
            reason="timer",
            publish=True,
            retries=0,
            body=successor.body,
            message=message,
            task=successor.task,
            queue=successor.queue,
            priority=successor.priority,
            discard="all",
            slot=successor.slot,
        )
        self._release(release, Stored(self.claim.id, message, successor.body))

    def _replace_by_others(self) -> None:
        """Leave the run to a chain, a chord or a plain task: its id comes back with the last of them.

        They are sent only when the run waits for them: a fast one would find it still running.
        """
        others = self.execution.outgoing
        release = Release(outcome="replaced", delay=timedelta(0), reason="replaced", retries=0, discard="all")
        stored = self._written(lambda: self.runs.replace(self.claim.key, self.claim.fence, release, others))
        self._after_commit(lambda: outgoing.send_collected(self.task.app, self.backend.store, others, stored))

    # -- the body was left ------------------------------------------------------------------------------

    def suspended(self, suspended: Suspended) -> Exception:
        """Leave the worker: for a wait, for a step's retry, or because the worker shuts down."""
        if isinstance(suspended, Continued):
            return self._continued(suspended)
        if suspended.stored:
            self._wake(suspended.messages)
            logger.info("%s leaves this worker and waits (%s)", self._where, suspended.reason)
            return Ignore(f"run {suspended.outcome}")
        release = Release(
            outcome=suspended.outcome,
            delay=suspended.delay,
            reason=suspended.reason,
            publish=not envelope.breaker.open,
            error=suspended.error,
            compensates=self.execution.compensates,
            cleans=self.execution.cleans,
        )
        state = self._release(release)
        logger.info("%s leaves this worker (%s): %s", self._where, suspended.outcome, state)
        return Ignore(f"run {suspended.outcome}")

    def _continued(self, continued: Continued) -> Exception:
        """Begin the run anew with other arguments: under its id, with nothing of its history."""
        try:
            successor = self._anew(continued)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  (arguments that do not fit, or cannot be serialized)
            self._fail(error)
            return error
        self._replace(successor)
        logger.info("%s continues with other arguments", self._where)
        return Ignore("run continued")

    def _anew(self, continued: Continued) -> NewRun:
        with outgoing.collecting(self.request.id) as caught:
            following: Any = self.task.signature_from_request(
                self.request, continued.with_args, continued.with_kwargs, retries=0
            )
            following.apply_async(add_to_parent=False)
        if caught.successor is None:
            message = f"{self.task.name} could not continue: its apply_async makes no run"
            raise DurableError(message)
        return caught.successor

    def cancelled(self) -> Exception:
        """End a run that was asked to stop."""
        reason = "deadline" if self.execution.overdue else "cancelled"
        finish = Finish(
            state=RunState.CANCELLED,
            reason=reason,
            unreported=has_dependents(self.request),
            cleaned=self.execution.cleaned,
        )
        if self._compensates(finish):
            return self._taken_back(finish, None)
        self._finish(finish)
        self._after_commit(lambda: tell_revoked(self.backend, self.request, reason))
        logger.info("%s was cancelled", self._where)
        return Ignore("run cancelled")

    def foreign(self, error: BaseException) -> Exception:
        """End a run whose body raised what Celery's pools cannot carry."""
        if self._is_hard_limit(error):
            return self.exited(error)
        carried = DurableError(f"The body raised {texts.line(error)}")
        carried.__cause__ = error
        self._fail(carried)
        return carried

    def _is_hard_limit(self, error: BaseException) -> bool:
        """Whether this is the timeout that Celery's gevent pool puts around a task."""
        hard = (self.request.timelimit or (None, None))[0] or self.task.time_limit
        ours = type(error).__module__.startswith("gevent") and getattr(error, "seconds", None) == hard
        return hard is not None and ours

    def exited(self, error: BaseException) -> Exception:
        """Hand on a run whose body ended as if its process did, where there is no child that is gone.

        By gevent's hard time limit, or `SystemExit` in a thread.
        """
        settings = self.backend.store.settings
        exhausted = ExhaustedError.after(self.request.id, settings.max_recoveries, texts.line(error))
        row = self.runs.recover_child(
            self.request.id,
            token=hooks.worker_token(),
            pid=None,
            error=texts.line(error),
            max_recoveries=settings.max_recoveries,
            result=self.backend.error_meta(exhausted),
            result_type=self.backend.content_type,
            budget=settings.outage_budget,
        )
        if row is None:
            return self.dropped(LeaseLostError())
        return exhausted if row["state"] == "failed" else Reject("the body exited", requeue=True)

    def dropped(self, error: DurableError) -> Ignore:
        """Write nothing: another attempt has the run, or this worker's keeper will hand it on."""
        if isinstance(error, LeaseLostError):
            attempt = self.execution.attempt
            logger.warning("%s: attempt %s lost its lease; nothing of it is stored", self._where, attempt)
        else:
            logger.error("%s: %s; the run is handed on", self._where, error)
        return Ignore(str(error))

    # -- writing ----------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"{self.task.name}[{self.request.id}]"

    @property
    def _result_is_ignored(self) -> bool:
        chosen = vars(self.request).get("ignore_result")  # the class attribute is no choice of the caller's
        return bool(self.task.ignore_result if chosen is None else chosen)

    @property
    def _child(self) -> Claim | None:
        """This run, if a parent waits for it."""
        return self.claim if self.claim.wait is not None else None

    def _finish(self, finish: Finish) -> None:
        finished = self._written(
            lambda: self.runs.finish(self.claim.key, self.claim.fence, finish, child=self._child)
        )
        self._wake(finished.woken)

    def _wake(self, messages: Sequence[Stored]) -> None:
        """Publish messages of other runs that may go on now, or begin."""
        if messages:
            self._after_commit(lambda: outgoing.send_stored(self.task.app, self.backend.store, messages))

    def _release(self, release: Release, message: Stored | None = None) -> RunState:
        """Leave the worker, and publish the next wake-up if it is due now."""
        state: RunState = self._written(lambda: self.runs.release(self.claim.key, self.claim.fence, release))
        if state.final and self._child is not None:
            self._wake(self._written(lambda: self.runs.waits.wake(self.claim)))
        if state is RunState.PENDING and release.publish:
            self._after_commit(lambda: self._publish(message or self.runs.stored(self.claim.key)))
        return state

    def _publish(self, message: Stored | None) -> None:
        if message is not None and envelope.publish_stored(self.task.app, [message]):
            self.runs.unpublish([message.id], timedelta(0))

    def _written(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except (LeaseLostError, StoreUnavailableError) as error:
            raise self.dropped(error) from None

    def _after_commit(self, send: Callable[[], None]) -> None:
        """Send what is stored already: what goes wrong now is no failure of the run, the keeper sends it."""
        try:
            send()
        except Exception:
            logger.exception("%s: its messages are left to the keeper", self._where)


def _delay(retry: Retry, successor: NewRun | None, task: DurableTask) -> timedelta:
    if successor is not None and successor.eta is None:
        return successor.countdown or timedelta(0)
    when = successor.eta if successor is not None else retry.when
    if isinstance(when, datetime):
        return max(when - datetime.now(timezone.utc), timedelta(0))  # noqa: TID251  (the caller's own clock)
    return timedelta(seconds=float(task.default_retry_delay if when is None else when))
