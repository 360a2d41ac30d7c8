"""One attempt of a run: replay what is stored, run what is not, store it, and stop when told to."""

from __future__ import annotations

import json
import random as random_module
import threading
import time
import uuid
from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_durable import checkpoint as outcomes
from celery_durable import context, texts
from celery_durable.checkpoint import Checkpoint, StepWrite, occurrence
from celery_durable.exceptions import (
    LeaseLostError,
    NondeterminismError,
    RunCancelled,
    SerializationError,
    StepInterruptedError,
    StepUsageError,
)
from celery_durable.limits import time_limit
from celery_durable.seam import Suspended
from celery_durable.serialization import digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.config import Settings
    from celery_durable.run import Claim
    from celery_durable.seam import Seam
    from celery_durable.steps import Step
    from celery_durable.store.runs import RunStore
    from celery_durable.store.writes import NewRun, PlainMessage

_NO_DIGEST = b"\0" * 16


class Execution:
    """One attempt of a run.

    Arguments:
        claim: the lease.
        history: the run's stored steps.
        runs: where to write.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(
        self, claim: Claim, history: list[Checkpoint], *, runs: RunStore, settings: Settings, seam: Seam
    ) -> None:
        self.claim = claim
        self.settings = settings
        self.thread = threading.get_ident()
        self.inside: str | None = None
        self.cancelled = claim.cancel_requested
        self.successor: NewRun | None = None
        self.rewritten = False
        self.replaced = False
        self.outgoing: list[NewRun | PlainMessage] = []
        self._runs = runs
        self._seam = seam
        self._control_flow: tuple[type[BaseException], ...] = (*seam.control_flow, LeaseLostError)
        self._history = {step.key: step for step in history}
        self._unmet = {step.key for step in history if step.finished}
        self._seq = max((step.seq for step in history), default=0)
        self._calls: Counter[str] = Counter()
        self._flying: dict[str, int] = {}
        self._lock = threading.Lock()
        self._lost = False
        self._told = False
        self._started = time.monotonic()
        self._times = [moment for step in history for moment in step.clock]
        self._times_read = 0
        self._times_new: list[datetime] = []
        self._chance = random_module.Random(claim.seed.int)  # noqa: S311  (repeatable on purpose)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.claim.id

    @property
    def name(self) -> str:
        """The run's id, told apart from those tasks that it replaced (`Task.replace` keeps the id)."""
        count = self.claim.replacements
        return f"{self.claim.id}/{count}" if count else self.claim.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self.claim.task

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.claim.attempt

    @property
    def lost(self) -> bool:
        """Whether another attempt owns the run now."""
        return self._lost

    # -- what a body calls ------------------------------------------------------------------------------

    def step(
        self, frame: context.Frame, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the step's stored outcome, or run it and store it."""
        arguments = digest(step.named_arguments(args, kwargs))
        base = frame.scope + (step.step_options.key or step.name)
        key = self._begin(base, keyed=step.step_options.key is not None)
        try:
            known = self._history.get(key)
            if known is not None and known.finished:
                return self._replayed(step, known, arguments)
            return self._performed(frame, step, key, known, arguments, args, kwargs)
        finally:
            self._flying.pop(base, None)

    def child(self, name: str, new_run: Callable[[str], NewRun]) -> tuple[str, str | None]:
        """Store a child run that the body starts; return its id and its state, None when it is known.

        It is a step of its own, so that a replay costs nothing; its id is derived from this run's.
        """
        base = f"delay:{name}"
        key = self._begin(base, keyed=False)
        try:
            known = self._history.get(key)
            if known is not None and known.finished:
                self._unmet.discard(key)
                return (known.output or b"").decode(), None
            child_id = str(uuid.uuid5(self._namespace, key))
            self._may_go_on()
            new = new_run(child_id)
            write = self._write(key, outcomes.OK, (_NO_DIGEST, name), tries=1, output=child_id.encode())
            return child_id, self._start(write, new)
        finally:
            self._flying.pop(base, None)

    def _start(self, write: StepWrite, new: NewRun) -> str | None:
        state: str | None = None

        def store() -> bool:
            nonlocal state
            stop, state = self._runs.enqueue_child(self.claim.key, self.claim.fence, write, new)
            return stop

        self._stored(store)
        return state

    def child_of_step(self, frame: context.Frame, name: str) -> str | None:
        """Return the id of a child run that a step's body starts: the same at every try of the step."""
        if frame.calls is None:
            return None  # a thread of its own within the step: nothing says in which order it calls
        frame.calls[name] = frame.calls.get(name, 0) + 1
        return str(uuid.uuid5(self._namespace, f"{frame.step}/delay:{occurrence(name, frame.calls[name])}"))

    @property
    def _namespace(self) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name}/{self.claim.generation}")

    def linked_id(self, name: str) -> str:
        """Return the id of a run that this run's finish starts: the same in every attempt of a generation."""
        return str(uuid.uuid5(self._namespace, f"link:{name}"))

    def now(self) -> datetime:
        """Return the database's time, the same at every replay."""
        with self._lock:
            if self._times_read < len(self._times):
                self._times_read += 1
                return self._times[self._times_read - 1]
            moment = self.claim.claimed_at + timedelta(seconds=time.monotonic() - self._started)
            self._times_new.append(moment)
            return moment

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID, the same at every replay."""
        with self._lock:
            return uuid.UUID(int=self._chance.getrandbits(128), version=4)

    def random(self) -> random_module.Random:
        """Return a generator that draws the same numbers at every replay."""
        return self._chance

    def annotate(self, *, tags: dict[str, str] | None = None, progress: Any = None) -> None:
        """Store labels or progress, for people to see."""
        try:
            self._runs.annotate(
                self.claim.key,
                self.claim.fence,
                tags=None if tags is None else json.dumps(tags, allow_nan=False),
                progress=None if progress is None else json.dumps(progress, allow_nan=False),
            )
        except LeaseLostError:
            self._lost = True
            raise
        except (TypeError, ValueError) as error:
            message = f"Tags and progress are kept as JSON, and this is none: {error}"
            raise SerializationError(message) from error

    def conclude(self) -> None:
        """Check, at the end of the body, that the lease is held and every stored step was met."""
        if self._lost:
            raise LeaseLostError
        if self._unmet and self.settings.nondeterminism != "ignore":
            missed = ", ".join(repr(key) for key in sorted(self._unmet)[:5])
            self._deviates(
                f"The body of {self.task} ended without the steps {missed}, which its history holds: "
                f"its code changed, or it depends on something that is not a step",
                missed=sorted(self._unmet),
            )

    # -- one call ---------------------------------------------------------------------------------------

    def _begin(self, base: str, *, keyed: bool) -> str:
        """Give a call its key; calls of one name at the same time need keys of their own."""
        thread = threading.get_ident()
        with self._lock:
            if self._flying.get(base, thread) != thread:
                message = (
                    f"Step {base!r} is called from several threads at once: at a replay its calls would get "
                    f"their keys in another order. Give each one its own: step.options(key=...)(...)"
                )
                raise StepUsageError(message, step=base)
            self._calls[base] += 1
            if keyed and self._calls[base] > 1:
                message = f"The step key {base!r} is used twice in this run: give each call its own"
                raise StepUsageError(message, step=base)
            key = occurrence(base, self._calls[base])
            self._flying[base] = thread
            return key

    def _replayed(self, step: Step[Any, Any], known: Checkpoint, arguments: tuple[bytes, str]) -> Any:
        self._unmet.discard(known.key)
        if known.digest != arguments[0] and self.settings.nondeterminism != "ignore":
            self._deviates(
                f"Step {known.key!r} of {self.task} was stored with other arguments than it is called with\n"
                f"  stored: {known.arguments}\n"
                f"  called: {arguments[1]}",
                step=known.key,
                stored=known.arguments,
                called=arguments[1],
            )
        if known.outcome == outcomes.ERROR:
            raise self._seam.load_error(known.codec, known.output or b"")
        return self._decoded(step, known.codec, known.output or b"")

    def _deviates(self, message: str, **facts: Any) -> None:
        if self.settings.nondeterminism == "error":
            raise NondeterminismError(message, **facts)
        self._seam.warn(message)

    def _decoded(self, step: Step[Any, Any], codec: str | None, output: bytes) -> Any:
        return self._seam.codec(codec)[1].decode(output, step.returns)

    def _performed(  # noqa: PLR0917  (one call in full)
        self,
        frame: context.Frame,
        step: Step[Any, Any],
        key: str,
        known: Checkpoint | None,
        arguments: tuple[bytes, str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        options = step.step_options
        tries, spent = (known.tries, known.spent) if known is not None else (0, 0)
        seq = self._next_seq()
        relaxed = options.commit == "async"
        if known is not None and known.outcome == outcomes.STARTED:
            raise self._interrupted(key)
        while True:
            self._may_go_on()
            tries += 1
            if options.at_most_once:
                self._save(self._write(key, outcomes.STARTED, arguments, tries=tries, spent=spent, seq=seq))
            began = time.monotonic()
            try:
                value = self._body(frame, step, key, args, kwargs)
                codec, coder = self._seam.codec(options.serializer)
                output = coder.encode(value, step.returns, where=f"step {key!r}")
                returned = coder.decode(output, step.returns)  # before it is stored: it must come back
            except self._control_flow:
                raise
            except Exception as error:
                delay = self._delay(step, error, tries - spent)
                form, dumped = self._seam.dump_error(error)
                write = self._write(
                    key,
                    outcomes.ERROR if delay is None else outcomes.TRYING,
                    arguments,
                    tries=tries,
                    spent=spent,
                    seq=seq,
                    output=dumped,
                    codec=form,
                    error=texts.line(error),
                    seconds=time.monotonic() - began,
                )
                self._save(write)
                if delay is None:
                    raise
                self._pause(delay)
            else:
                self._save(
                    self._write(
                        key,
                        outcomes.OK,
                        arguments,
                        tries=tries,
                        spent=spent,
                        seq=seq,
                        output=output,
                        codec=codec,
                        seconds=time.monotonic() - began,
                    ),
                    relaxed=relaxed,
                )
                return returned

    def _body(
        self,
        frame: context.Frame,
        step: Step[Any, Any],
        key: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        owner = threading.get_ident() == self.thread
        if owner:
            self.inside = key
        try:
            with context.inside_step(frame, key):
                limit = step.step_options.time_limit
                if limit is None:
                    return step.function(*args, **kwargs)
                with time_limit(limit, f"Step {key!r}"):
                    return step.function(*args, **kwargs)
        finally:
            if owner:
                self.inside = None

    def _delay(self, step: Step[Any, Any], error: Exception, failures: int) -> float | None:
        if step.step_options.at_most_once or isinstance(error, (SerializationError, StepUsageError)):
            return None
        return step.step_options.delay_after(error, failures)

    def _interrupted(self, key: str) -> StepInterruptedError:
        message = (
            f"The at_most_once step {key!r} was started by an attempt that ended before the outcome was "
            f"stored. Find out what it did, then cancel the run, or start another"
        )
        return StepInterruptedError(message, step=key)

    def _pause(self, delay: float) -> None:
        if delay > self.settings.step_sleep:
            raise Suspended("suspended", delay, "retry")
        threading.Event().wait(delay)

    def _may_go_on(self) -> None:
        """Stop at a step boundary: the lease is gone, the run is cancelled, or the worker shuts down."""
        if self._lost:
            raise LeaseLostError
        if self.cancelled and not self._told:
            self._told = True  # once: the body may clean up with further steps
            raise RunCancelled
        if self._seam.draining():
            raise Suspended("released")

    # -- writing ----------------------------------------------------------------------------------------

    def _next_seq(self) -> int:
        with self._lock:
            self._seq += 1
            return self._seq

    def _write(
        self,
        key: str,
        outcome: str,
        arguments: tuple[bytes, str],
        *,
        tries: int,
        spent: int = 0,
        seq: int | None = None,
        output: bytes | None = None,
        codec: str | None = None,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> StepWrite:
        with self._lock:
            drawn, self._times_new = self._times_new, []
        return StepWrite(
            key=key,
            seq=seq if seq is not None else self._next_seq(),
            outcome=outcome,
            output=output,
            codec=codec,
            digest=arguments[0],
            arguments=arguments[1],
            tries=tries,
            spent=spent,
            error=error,
            clock=drawn or None,
            seconds=seconds,
        )

    def _save(self, write: StepWrite, *, relaxed: bool = False) -> None:
        self._stored(lambda: self._runs.checkpoint(self.claim.key, self.claim.fence, write, relaxed=relaxed))

    def _stored(self, store: Callable[[], bool]) -> None:
        try:
            self.cancelled = store() or self.cancelled
        except LeaseLostError:
            self._lost = True
            raise
