"""One attempt in a worker: claim, run the body, settle. Every way out of a body ends here, and only here."""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from celery import states
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from celery_durable import context, envelope, hooks, links, outgoing
from celery_durable.backend import durable_backend, has_dependents
from celery_durable.exceptions import (
    DurableError,
    ExhaustedError,
    Fatal,
    LeaseLostError,
    NondeterminismError,
    RunCancelled,
    SerializationError,
    StepInterruptedError,
    StepUsageError,
    StoreUnavailableError,
)
from celery_durable.executor import Execution, Suspended
from celery_durable.run import Refusal, RunState
from celery_durable.store.keeping import Stored
from celery_durable.store.runs import Finish, Release

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.backend import DurableBackend
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.run import Claim
    from celery_durable.serialization import ValueCodec
    from celery_durable.store.runs import NewRun
    from celery_durable.task import DurableTask

logger = logging.getLogger(__name__)

TERMINAL = (
    Fatal,
    NondeterminismError,
    LeaseLostError,
    SerializationError,
    StepUsageError,
    StepInterruptedError,
    StoreUnavailableError,
)
"""Errors that a retry of the run cannot mend."""

_WORKER_PAUSE = 0.25


class WorkerSeam:
    """Celery's way with values, errors and shutdown, for the executor below."""

    control_flow: tuple[type[BaseException], ...] = (Ignore, Reject, Retry, SoftTimeLimitExceeded)

    def __init__(self, backend: DurableBackend) -> None:
        self._backend = backend

    def codec(self, serializer: str | None) -> tuple[str, ValueCodec]:
        """Return the name and the codec of a serializer."""
        return self._backend.codec(serializer)

    def dump_error(self, error: BaseException) -> bytes:
        """Return an exception as Celery stores it."""
        return self._backend.error_meta(error)

    def load_error(self, data: bytes) -> BaseException:
        """Return the exception that a stored step ended with."""
        error: BaseException | None = self._backend.exception_to_python(self._backend.decoded(data, None))
        return error or DurableError("The step failed with an error that cannot be read")

    def draining(self) -> bool:
        """Say whether this worker is shutting down."""
        return hooks.draining()

    def warn(self, message: str) -> None:
        """Tell the operator."""
        logger.warning(message)


class Attempt:
    """One delivery of a run's message.

    Arguments:
        task: the task.
        request: Celery's request.
    """

    def __init__(self, task: DurableTask, request: Any) -> None:
        self.task = task
        self.request = request
        self.backend = durable_backend(task.app)
        self.runs = self.backend.store.runs
        request.durable = True  # from here on the run's own writes are the only ones

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Claim the run, run its body and settle it; raise what tells Celery's tracer the outcome."""
        claim, history = self._claim(args, kwargs)
        execution = Execution(
            claim,
            history,
            runs=self.runs,
            settings=self.backend.store.settings,
            seam=WorkerSeam(self.backend),
        )
        args, kwargs = self._as_stored(claim, args, kwargs)
        self.request.retries = claim.retries
        try:
            with context.activate(execution):
                value = self.task.run(*args, **kwargs)
                execution.conclude()
            self._succeed(execution, value)
        except Suspended as suspended:
            raise self._suspend(execution, suspended) from None
        except (LeaseLostError, StoreUnavailableError) as error:
            raise self._drop(execution, error) from None
        except Exception as error:
            if execution.lost:
                raise self._drop(execution, LeaseLostError()) from None
            self._settle(execution, error)
            raise
        except RunCancelled:
            raise self._cancel(execution) from None
        except (SystemExit, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise self._foreign(execution, error) from error
        return value

    # -- claim ------------------------------------------------------------------------------------------

    def _claim(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Claim, list[Checkpoint]]:
        fence = uuid.uuid4()
        waited_until = time.monotonic() + self.backend.store.settings.lease
        while True:
            outcome = self._try_claim(fence)
            if not isinstance(outcome, Refusal):
                return outcome
            if outcome is Refusal.UNKNOWN and self.request.get(envelope.HEADER) is None:
                self._store_run(args, kwargs)
            elif outcome is Refusal.NO_WORKER and time.monotonic() < waited_until and not hooks.draining():
                threading.Event().wait(_WORKER_PAUSE)
            else:
                raise self._refused(outcome)

    def _try_claim(self, fence: uuid.UUID) -> tuple[Claim, list[Checkpoint]] | Refusal:
        if hooks.draining():
            raise Reject("this worker is shutting down", requeue=True)
        try:
            return self.runs.claim(
                self.request.id,
                fence=fence,
                token=hooks.worker_token(),
                pid=os.getpid(),
                revision=int(self.request.get(envelope.HEADER) or 0),
                give_up=hooks.draining,
            )
        except StoreUnavailableError:
            raise Reject("this worker shuts down while Postgres is away", requeue=True) from None

    def _refused(self, refusal: Refusal) -> Ignore | Reject:
        where = f"{self.task.name}[{self.request.id}]"
        if refusal is Refusal.NO_WORKER:
            logger.warning("%s: this worker has no live row in the store; the message goes back", where)
            return Reject("no live worker row", requeue=True)
        logger.info("%s: nothing to do, the run is %s", where, refusal.value)
        return Ignore(f"run is {refusal.value}")

    def _store_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Give a row to a message that was sent without one: by name, by beat, from another language."""
        with outgoing.collecting(self.request.id) as caught:
            # The current task is this very run: it must not become its own child.
            self.task.signature_from_request(self.request, args, kwargs).apply_async(add_to_parent=False)
        if caught.successor is not None:
            self.runs.enqueue(caught.successor)

    def _as_stored(
        self, claim: Claim, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the stored arguments when this message carries older ones."""
        if claim.body is None or claim.message is None:
            return args, kwargs
        accept = self.task.app.conf.accept_content
        stored_args, stored_kwargs, embed = envelope.body_of(claim.message, bytes(claim.body), accept)
        self.request.args, self.request.kwargs = stored_args, stored_kwargs
        self.request.update(embed)
        return tuple(stored_args), stored_kwargs

    # -- settle -----------------------------------------------------------------------------------------

    @property
    def _result_is_ignored(self) -> bool:
        chosen = vars(self.request).get("ignore_result")  # the class attribute is no choice of the caller's
        return bool(self.task.ignore_result if chosen is None else chosen)

    def _succeed(self, execution: Execution, value: Any) -> None:
        hidden = self._result_is_ignored
        result = None if hidden else self.backend.encoded(self.backend.encode_result(value, states.SUCCESS))
        messages = links.of_success(self.task, self.request, execution, value)
        stored = self.runs.finish(
            execution.claim.key,
            execution.claim.fence,
            Finish(
                state=RunState.SUCCEEDED,
                result=result,
                result_type=self.backend.content_type,
                meta=self.backend.extra_meta(self.request, hidden=hidden),
            ),
            messages,
        )
        self.request.callbacks = self.request.chain = (
            None  # stored with the finish: nothing is left to dispatch
        )
        outgoing.send_collected(self.task.app, self.backend.store, messages, stored)

    def _settle(self, execution: Execution, error: Exception) -> None:
        """Store how a body that raised leaves its run; the error then tells the tracer."""
        if isinstance(error, Retry):
            self._retry(execution, error)
        elif isinstance(error, Ignore):
            self._ignored(execution)
        elif isinstance(error, Reject) and getattr(error, "requeue", False):
            self._release(execution, Release(outcome="released", delay=timedelta(0)))
        else:
            self._fail(execution, error)

    def _fail(self, execution: Execution, error: Exception) -> None:
        hidden = self._result_is_ignored and not self.task.store_errors_even_if_ignored
        finish = Finish(
            state=RunState.FAILED,
            result=self.backend.error_meta(error),
            result_type=self.backend.content_type,
            traceback=_trace(error),
            meta=self.backend.extra_meta(self.request, hidden=hidden),
            error=_line(error),
            reason=type(error).__name__ if isinstance(error, DurableError) else None,
            unreported=has_dependents(self.request),
        )
        self._finish(execution, finish)

    def _retry(self, execution: Execution, retry: Retry) -> None:
        successor, cause = execution.successor, retry.exc or retry
        changed = successor is not None and execution.rewritten
        revision = execution.claim.revision + 1
        self._release(
            execution,
            Release(
                outcome="retry",
                delay=_delay(retry, successor, self.task),
                reason="retry",
                publish=True,
                retries=execution.claim.retries + 1,
                error=_line(cause),
                traceback=_trace(cause),
                result=self.backend.encoded(self.backend.encode_result(retry.exc, states.RETRY)),
                result_type=self.backend.content_type,
                body=successor.body if successor is not None and changed else None,
                message=envelope.with_revision(successor.message, revision)
                if successor and changed
                else None,
                discard="errors",
            ),
        )

    def _ignored(self, execution: Execution) -> None:
        """End a run that raised `Ignore`: replaced by another task, or over without a result."""
        if execution.replaced:
            self._replace(execution, execution.successor)
            return
        self._finish(execution, Finish(state=RunState.CANCELLED, reason="ignored"))

    def _replace(self, execution: Execution, successor: NewRun | None) -> None:
        if successor is None:
            self._replace_by_others(execution)
            return
        release = Release(
            outcome="replaced",
            delay=successor.countdown or timedelta(0),
            reason="timer",
            publish=True,
            body=successor.body,
            message=envelope.with_revision(successor.message, execution.claim.revision + 1),
            task=successor.task,
            queue=successor.queue,
            priority=successor.priority,
            discard="all",
        )
        self._release(execution, release, new_message=release.message, new_body=release.body)

    def _replace_by_others(self, execution: Execution) -> None:
        """Leave the run to a chain, a chord or a plain task: its id comes back with the last of them.

        They are sent only when the run waits for them: a fast one would find it still running.
        """
        claim, others = execution.claim, execution.outgoing
        release = Release(outcome="replaced", delay=timedelta(0), reason="replaced", discard="all")
        stored = self._written(execution, lambda: self.runs.replace(claim.key, claim.fence, release, others))
        outgoing.send_collected(self.task.app, self.backend.store, others, stored)

    def _suspend(self, execution: Execution, suspended: Suspended) -> Exception:
        release = Release(
            outcome=suspended.outcome,
            delay=suspended.delay,
            reason=suspended.reason,
            publish=not envelope.breaker.open,
        )
        try:
            state = self._release(execution, release)
        except (LeaseLostError, StoreUnavailableError) as error:
            return self._drop(execution, error)
        logger.info(
            "%s[%s] leaves this worker (%s): %s", self.task.name, self.request.id, suspended.outcome, state
        )
        return Ignore(f"run {suspended.outcome}")

    def _cancel(self, execution: Execution) -> Exception:
        try:
            self._finish(execution, Finish(state=RunState.CANCELLED, reason="cancelled"))
        except Ignore as dropped:
            return dropped
        logger.info("%s[%s] was cancelled", self.task.name, self.request.id)
        return Ignore("run cancelled")

    def _foreign(self, execution: Execution, error: BaseException) -> Exception:
        """End a run whose body raised what Celery's pools cannot carry."""
        if type(error).__module__.startswith("gevent"):
            return self._timed_out(execution, error)
        carried = DurableError(f"The body raised {type(error).__qualname__}: {error}")
        carried.__cause__ = error
        self._fail(execution, carried)
        return carried

    def _timed_out(self, execution: Execution, error: BaseException) -> Exception:
        """Hand on a run that gevent's hard time limit ended: there is no child to kill."""
        limit = self.backend.store.settings.max_recoveries
        exhausted = ExhaustedError.after(self.request.id, limit, error)
        row = self.runs.recover_child(
            self.request.id,
            token=hooks.worker_token(),
            pid=None,
            error=f"{type(error).__name__}: {error}",
            max_recoveries=limit,
            result=self.backend.error_meta(exhausted),
            result_type=self.backend.content_type,
            budget=self.backend.store.settings.outage_budget,
        )
        if row is None:
            return self._drop(execution, LeaseLostError())
        return exhausted if row["state"] == "failed" else Reject("time limit exceeded", requeue=True)

    def _drop(self, execution: Execution, error: DurableError) -> Exception:
        where = f"{self.task.name}[{self.request.id}]"
        if isinstance(error, LeaseLostError):
            logger.warning("%s: attempt %s lost its lease; nothing of it is stored", where, execution.attempt)
        else:
            logger.error("%s: %s; the run is handed on", where, error)
        return Ignore(str(error))

    def _finish(self, execution: Execution, finish: Finish) -> None:
        self._written(execution, lambda: self.runs.finish(execution.claim.key, execution.claim.fence, finish))

    def _written(self, execution: Execution, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except (LeaseLostError, StoreUnavailableError) as error:
            raise self._drop(execution, error) from None

    def _release(
        self,
        execution: Execution,
        release: Release,
        *,
        new_message: bytes | None = None,
        new_body: bytes | None = None,
    ) -> RunState:
        """Leave the worker, and publish the next wake-up if it is due now."""
        claim = execution.claim
        state: RunState = self._written(execution, lambda: self.runs.release(claim.key, claim.fence, release))
        if state is RunState.PENDING and release.publish:
            stored = self.runs.stored(claim.key) if new_message is None or new_body is None else None
            message = stored or Stored(claim.id, new_message or b"", new_body or b"")
            if envelope.publish_stored(self.task.app, [message]):
                self.runs.unpublish([claim.id], timedelta(0))
        return state


def _delay(retry: Retry, successor: NewRun | None, task: DurableTask) -> timedelta:
    if successor is not None and successor.eta is None:
        return successor.countdown or timedelta(0)
    when = successor.eta if successor is not None else retry.when
    if isinstance(when, datetime):
        return max(when - datetime.now(timezone.utc), timedelta(0))  # noqa: TID251  (the caller's own clock)
    return timedelta(seconds=float(task.default_retry_delay if when is None else when))


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).replace("\0", "\\0")


def _line(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}".replace("\0", "\\0")[:2000]
