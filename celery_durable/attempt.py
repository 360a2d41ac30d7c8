"""One attempt in a worker: claim the run, run its body, settle it. Every way out of a body ends here."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from billiard.process import current_process
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    WorkerShutdown,
    WorkerTerminate,
)

from celery_durable import chains, context, envelope, hooks, outgoing, slots
from celery_durable.backend import durable_backend, tell_revoked
from celery_durable.compensating import Rollback
from celery_durable.exceptions import (
    DurableError,
    LeaseLostError,
    PayloadTooLargeError,
    RunCancelled,
    StoreError,
    StoreUnavailableError,
)
from celery_durable.executor import Execution
from celery_durable.run import Refusal, RunState
from celery_durable.seam import Suspended
from celery_durable.settling import Settlement
from celery_durable.store import in_hand
from celery_durable.transport import capture

if TYPE_CHECKING:
    from celery_durable.backend import DurableBackend
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.run import Claim
    from celery_durable.serialization import ValueCodec
    from celery_durable.store.transactions import TransactionStore
    from celery_durable.task import DurableTask

logger = logging.getLogger(__name__)

_MAIN = "MainProcess"  # as billiard and Celery call it
_PAUSE = 0.25
_LONG_PAUSE = 5.0


class WorkerSeam:
    """Celery's way with values, errors and shutdown, for the executor below."""

    control_flow: tuple[type[BaseException], ...] = (Ignore, Reject, Retry, SoftTimeLimitExceeded)
    cut_off: tuple[type[BaseException], ...] = (SoftTimeLimitExceeded,)

    def __init__(self, backend: DurableBackend) -> None:
        self._backend = backend

    def codec(self, serializer: str | None) -> tuple[str, ValueCodec]:
        """Return the name and the codec of a serializer."""
        return self._backend.codec(serializer)

    def dump_error(self, error: BaseException) -> tuple[str, bytes]:
        """Return an exception as Celery stores it, and the content type."""
        return self._backend.content_type, self._backend.error_meta(error)

    def load_error(self, content_type: str | None, data: bytes) -> BaseException:
        """Return the exception that a stored step ended with."""
        decoded = self._backend.decoded(data, content_type)
        error: BaseException | None = self._backend.exception_to_python(decoded)
        return error or DurableError("The step failed with an error that cannot be read")

    def transactions(self, database: str | None) -> TransactionStore:
        """Return the transactions of steps in the store's database, or in another one."""
        return self._backend.store.transactions(database)

    def outcome_of(
        self, state: str, reason: str | None, content_type: str | None, result: bytes | None
    ) -> tuple[bool, Any]:
        """Return whether a child succeeded, and its value or its exception."""
        if state == RunState.SUCCEEDED.value:
            return True, self._backend.decoded(result, content_type)
        if state == RunState.CANCELLED.value:
            return False, TaskRevokedError(reason or "cancelled")
        return False, self.load_error(content_type, result or b"null")

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
        request.eta, request.expires = (
            request.get(told) or getattr(request, name) for name, told in envelope.TIMES.items()
        )
        request.chain = chains.rest(task.app, request.chain)
        request.durable = True  # from here on the run's own writes are the only ones

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Claim the run, run its body and settle it; raise what tells Celery's tracer the outcome."""
        database = self.backend.store.identity
        with in_hand.holding(capture.claim_of(self.request.get("properties"), database)):
            return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        claim, history = self._claim(args, kwargs)
        try:
            return self._execute(claim, history, args, kwargs)
        finally:
            if claim.slot is not None:
                slots.hand_on(self.task.app, self.backend.store, claim.slot)

    def _execute(
        self, claim: Claim, history: list[Checkpoint], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        execution = Execution(
            claim,
            history,
            runs=self.runs,
            settings=self.backend.store.settings,
            seam=WorkerSeam(self.backend),
        )
        settlement = Settlement(self.task, self.request, execution)
        try:
            if claim.attempt == 1 and execution.overdue:
                raise settlement.cancelled()
            return self._settled(settlement, args, kwargs)
        except (SystemExit, KeyboardInterrupt) as error:
            if self._ends_the_process(error):
                raise
            raise settlement.exited(error) from error

    @staticmethod
    def _ends_the_process(error: BaseException) -> bool:
        """Whether what a body raised ends a pool child, or a worker that is told to stop: not a thread."""
        return isinstance(error, (WorkerShutdown, WorkerTerminate)) or current_process().name != _MAIN

    def _settled(self, settlement: Settlement, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        execution, claim = settlement.execution, settlement.claim
        try:
            args, kwargs = self._as_stored(claim, args, kwargs)
            self.request.retries = claim.retries
            if claim.rolls_back:
                told = Rollback(settlement).of_replay(lambda: self.task.unretried(*args, **kwargs))
            else:
                with context.activate(execution):
                    value = self._value(execution, args, kwargs)
        except (SystemExit, KeyboardInterrupt):
            raise
        except Suspended as suspended:
            raise settlement.suspended(suspended) from None
        except RunCancelled:
            raise settlement.cancelled() from None
        except (LeaseLostError, StoreUnavailableError) as error:
            raise settlement.dropped(error) from None
        except Exception as error:
            if execution.lost:
                raise settlement.dropped(LeaseLostError()) from None
            settlement.raised(error)
            raise
        except BaseException as error:
            raise settlement.foreign(error) from error
        if claim.rolls_back:
            raise told
        settlement.succeeded(value)
        return value

    def _value(self, execution: Execution, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the body returns; one that has left its worker ends so, whatever it does about it."""
        try:
            value = self.task.body(*args, **kwargs)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            if execution.leaving is not None:
                raise execution.departed(execution.leaving) from None
            raise
        if execution.retry is not None:  # asked for with throw=False, or caught
            raise execution.retry
        execution.conclude()
        return value

    def _claim(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Claim, list[Checkpoint]]:
        fence = uuid.uuid4()
        waited_until = time.monotonic() + self.backend.store.settings.lease
        while True:
            outcome = self._try_claim(fence)
            if not isinstance(outcome, Refusal):
                if isinstance(self.request.chain, chains.Rest):
                    self.request.chain.found(outcome[0].link)
                return outcome
            if outcome is Refusal.UNKNOWN and self.request.get(envelope.HEADER) is None:
                self._store_run(args, kwargs)
            elif outcome is Refusal.NO_WORKER and time.monotonic() < waited_until and not hooks.draining():
                threading.Event().wait(_PAUSE)
            else:
                raise self._refused(outcome)

    def _try_claim(self, fence: uuid.UUID) -> tuple[Claim, list[Checkpoint]] | Refusal:
        if hooks.draining():
            raise Reject("this worker is shutting down", requeue=True)
        try:
            if not self.request.get(slots.HEADER):
                claimer, link = self._claimer(fence), self._link_wanted
                outcome = self.runs.claim(self.request.id, **claimer, link=link, give_up=hooks.draining)
                if outcome is not Refusal.SLOTTED:
                    return outcome
            return self._claim_slot(fence)
        except StoreUnavailableError:
            raise Reject("this worker shuts down while Postgres is away", requeue=True) from None
        except StoreError as error:
            logger.error("%s[%s] cannot be claimed: %s", self.task.name, self.request.id, error)  # noqa: TRY400
            threading.Event().wait(_LONG_PAUSE)
            raise Reject(str(error), requeue=True) from None

    @property
    def _link_wanted(self) -> tuple[str, int] | None:
        return self.request.chain.wanted if isinstance(self.request.chain, chains.Rest) else None

    def _claimer(self, fence: uuid.UUID) -> dict[str, Any]:
        return {
            "task": self.task.name,
            "fence": fence,
            "token": hooks.worker_token(),
            "pid": os.getpid(),
            "revision": int(self.request.get(envelope.HEADER) or 0),
        }

    def _claim_slot(self, fence: uuid.UUID) -> tuple[Claim, list[Checkpoint]] | Refusal:
        store = self.backend.store
        claimer = {"id": self.request.id, **self._claimer(fence)}
        outcome, woken = store.slots.claim(claimer, self._link_wanted, hooks.draining)
        slots.publish(self.task.app, store, woken)
        return outcome

    def _refused(self, refusal: Refusal) -> Ignore | Reject:
        where = f"{self.task.name}[{self.request.id}]"
        if refusal is Refusal.NO_WORKER:
            logger.warning("%s: this worker has no live row in the store; the message goes back", where)
            return Reject("no live worker row", requeue=True)
        if refusal is Refusal.EXPIRED:
            tell_revoked(self.backend, self.request, "expired")
        logger.info("%s: nothing to do, the run is %s", where, refusal.value)
        return Ignore(f"run is {refusal.value}")

    def _store_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Give a row to a message that was sent without one: by name, by beat, from another language."""
        signature = self.task.signature_from_request(self.request, args, kwargs)
        try:
            with outgoing.collecting(self.request.id) as caught:
                # The current task is this very run: it must not become its own child.
                signature.apply_async(add_to_parent=False)
        except (Ignore, Reject, StoreError):
            raise
        except Exception:  # arguments or a key that do not fit, which a sender by name could not know
            self._store_refused(signature)
            raise
        if caught.successor is None:
            logger.error("%s[%s] has no row, and its apply_async makes none", self.task.name, self.request.id)
            raise Ignore("no run")
        self.runs.enqueue(caught.successor)

    def _store_refused(self, signature: Any) -> None:
        """Give a row to a call that its own task refuses: so there is a run that fails with what is raised.

        Where it can have none (arguments that are too large), that is stored as a plain task's failure.
        """
        self.request.durable = False  # it fails in front of its claim
        app = self.task.app
        try:
            with outgoing.collecting(self.request.id) as caught, app.producer_or_acquire() as producer:
                storing: Any = outgoing.StoringProducer(app, producer, outgoing.Schedule())
                app.send_task(
                    self.task.name,
                    signature.args,
                    signature.kwargs,
                    producer=storing,
                    add_to_parent=False,
                    **signature.options,
                )
        except PayloadTooLargeError:
            return
        if caught.successor is not None:
            self.runs.enqueue(caught.successor)
            setattr(self.request, envelope.HEADER, 0)

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
        self.request.chain = chains.rest(self.task.app, self.request.chain)
        return tuple(stored_args), stored_kwargs
