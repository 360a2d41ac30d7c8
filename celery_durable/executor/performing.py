"""Performing a step that is not stored yet: its tries, the pauses between them, what is stored of each."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable import checkpoint as outcomes
from celery_durable import context, texts
from celery_durable.exceptions import (
    ConfigurationError,
    Fatal,
    LeaseLostError,
    SerializationError,
    StepInterruptedError,
    StepUsageError,
    StoreError,
    StoreUnavailableError,
)
from celery_durable.executor.asks import Abandoned, Body, Note, Pause, Write, answered
from celery_durable.limits import time_limit
from celery_durable.seam import Suspended
from celery_durable.serialization import is_same

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from celery_durable.checkpoint import Checkpoint, StepWrite
    from celery_durable.config import Settings
    from celery_durable.executor.asks import Ask
    from celery_durable.executor.journal import Journal
    from celery_durable.seam import Seam
    from celery_durable.steps import Step
    from celery_durable.transactions import TransactionStep


_FOR_GOOD = (Fatal, ConfigurationError, SerializationError, StepUsageError)
_AGAIN = object()
_UNTIL_IT_ANSWERS = 30.0  # seconds, behind the outage budget: another database is away, the run's is not


class Call(NamedTuple):
    """One call of a step: its key, and the arguments as they are compared and as they are passed."""

    key: str
    arguments: tuple[bytes, str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seq: int | None = None  # shared by calls that are made side by side
    behind: int | None = None  # the latest outcome that an overlapping call could know of


class Try(NamedTuple):
    """One try of a call, as it is counted."""

    tries: int
    spent: int
    seq: int | None  # None: an awaited step is numbered when it ends
    began: float


class Performer:
    """Runs step bodies for one attempt.

    What a step goes through is written once, as a generator of what it asks for: a body to be run, a write, a
    pause. Who drives it does so at once, or awaits each of them.

    Attributes:
        inside: the key of the step whose body the attempt's own thread is in.

    Arguments:
        journal: where the outcomes go.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(self, journal: Journal, settings: Settings, seam: Seam) -> None:
        self.inside: str | None = None
        self._journal = journal
        self._settings = settings
        self._seam = seam
        self._control_flow: tuple[type[BaseException], ...] = (*seam.control_flow, LeaseLostError)

    def perform(
        self, frame: context.Frame, step: Step[Any, Any], call: Call, known: Checkpoint | None
    ) -> Any:
        """Run the step until it is finished or its tries are used up, and store each of them."""
        return answered(self.tries(step, call, known, lambda *handle: self._body(frame, step, call, *handle)))

    def tries(
        self, step: Step[Any, Any], call: Call, known: Checkpoint | None, body: Callable[..., Any]
    ) -> Generator[Ask, Any, Any]:
        """Yield what the step asks for; return its value."""
        tries, spent = (known.tries, known.spent) if known is not None else (0, 0)
        seq = None if step.is_async else call.seq or self._journal.next_seq()
        if known is not None and known.outcome == outcomes.STARTED:
            raise _interrupted(call.key)
        value: Any = _AGAIN
        while value is _AGAIN:
            tries += 1
            this = Try(tries, spent, seq, time.monotonic())
            try:
                value = yield from self._once(step, call, this, body)
            except Abandoned as abandoned:
                entry = self._abandoned(call, this, abandoned)
                yield Write(partial(self._journal.save, entry), entry.seq)
                raise
        return value

    def _once(
        self, step: Step[Any, Any], call: Call, this: Try, body: Callable[..., Any]
    ) -> Generator[Ask, Any, Any]:
        """Yield what one try asks for; return the step's value, or that it is tried again."""
        journal, options = self._journal, step.step_options
        transaction: Any = step.transacted
        if journal.out_of_touch:
            yield Note(journal.ask)
        journal.may_go_on()
        self._seam.codec(options.serializer)  # one that is not known is found out in front of the body
        if options.at_most_once:
            yield Note(partial(journal.save, self._entry(call, this, outcomes.STARTED)))
        try:
            if transaction is not None:
                return (yield Write(partial(self._transact, transaction, call, this, body), this.seq or 0))
            value = yield Body(body)
            value, codec, output = self._stored_form(step, call, value)
        except self._control_flow as error:
            self._passes(call, this, error)
            raise
        except Exception as error:
            if transaction is not None and isinstance(error, StoreError):
                raise
            delay = _delay(step, error, this.tries - this.spent)
            failure = self._failure(call, this, error, delay)
            if delay is None:
                yield Write(partial(journal.save, failure), failure.seq)
                raise self._as_replayed(failure, error)  # noqa: B904  (it has a cause where it needs one)
            yield Note(partial(journal.save, failure))
            self._leave_for(delay)
            yield Pause(delay)
            return _AGAIN
        entry = self._entry(call, this, outcomes.OK, output=output, codec=codec)
        yield Write(partial(journal.save, entry, relaxed=options.commit == "async"), entry.seq)
        return value

    def _stored_form(self, step: Step[Any, Any], call: Call, value: Any) -> tuple[Any, str, bytes]:
        """Return a body's value as the run gets it, and as it is stored."""
        codec, coder = self._seam.codec(step.step_options.serializer)
        output = coder.encode(value, step.returns, where=f"step {call.key!r}")
        return coder.decode(output, step.returns), codec, output  # before it is stored: it must come back

    def _body(self, frame: context.Frame, step: Step[Any, Any], call: Call, *handle: Any) -> Any:
        owner = threading.get_ident() == self._journal.thread
        if owner:
            self.inside = call.key
        function: Callable[..., Any] = step.function
        try:
            with context.inside_step(frame, call.key):
                limit = step.step_options.time_limit
                if limit is None:
                    return function(*handle, *call.args, **call.kwargs)
                with time_limit(limit, f"Step {call.key!r}"):
                    return function(*handle, *call.args, **call.kwargs)
        finally:
            if owner:
                self.inside = None

    def _transact(
        self, step: TransactionStep[..., Any], call: Call, this: Try, body: Callable[..., Any]
    ) -> Any:
        """Run a body in its transaction, which stores its value; or find that it has been stored before."""
        returned: Any = None

        def inside(handle: Any) -> StepWrite:
            nonlocal returned
            returned, codec, output = self._stored_form(step, call, body(handle))
            return self._entry(call, this, outcomes.OK, output=output, codec=codec)

        database = step.step_options.database
        try:
            kept = self._journal.transact(self._seam.transactions(database), call.key, step.form, inside)
        except StoreUnavailableError as error:
            if database is None:
                raise
            self._leave_for(_UNTIL_IT_ANSWERS, f"The database of {call.key!r}: {texts.line(error)}")
            raise
        if kept.before:
            returned = self._seam.codec(kept.codec)[1].decode(kept.output or b"", step.returns)
        if database is not None:
            self._journal.save(self._entry(call, this, outcomes.OK, output=kept.output, codec=kept.codec))
        return returned

    # -- what is stored -----------------------------------------------------------------------------------

    def _entry(self, call: Call, this: Try, outcome: str, **more: Any) -> StepWrite:
        return self._journal.entry(
            call.key,
            outcome,
            call.arguments,
            tries=this.tries,
            spent=this.spent,
            seq=this.seq,
            behind=call.behind,
            seconds=0.0 if outcome == outcomes.STARTED else time.monotonic() - this.began,
            **more,
        )

    def _abandoned(self, call: Call, this: Try, abandoned: Abandoned) -> StepWrite:
        return self._entry(call, this, outcomes.ERROR, codec=outcomes.ABANDONED, error=str(abandoned))

    def _failure(self, call: Call, this: Try, error: BaseException, delay: float | None) -> StepWrite:
        form, dumped = self._seam.dump_error(error)
        outcome = outcomes.ERROR if delay is None else outcomes.TRYING
        return self._entry(call, this, outcome, output=dumped, codec=form, error=texts.line(error))

    def _passes(self, call: Call, this: Try, error: BaseException) -> None:
        """Let a time limit of the run pass; if the body goes on behind it, the step has ended with it."""
        if isinstance(error, self._seam.cut_off):
            self._journal.owe(self._failure(call, this, error, None))

    def _as_replayed(self, failure: StepWrite, error: Exception) -> BaseException:
        """Return what a replay will raise: the error itself, or where not all of it is kept, what is."""
        kept = self._seam.load_error(failure.codec, failure.output or b"")
        if is_same(kept, error):
            return error
        kept.__cause__ = error
        return kept

    def _leave_for(self, delay: float, error: str | None = None) -> None:
        if delay > self._settings.step_sleep:
            raise self._journal.leave(Suspended("suspended", delay, "retry", error=error))


def _delay(step: Step[Any, Any], error: Exception, failures: int) -> float | None:
    if step.step_options.at_most_once or isinstance(error, _FOR_GOOD):
        return None
    return step.step_options.delay_after(error, failures)


def _interrupted(key: str) -> StepInterruptedError:
    message = (
        f"The at_most_once step {key!r} was started by an attempt that ended before the outcome was "
        f"stored. Find out what it did, then cancel the run, or start another"
    )
    return StepInterruptedError(message, step=key)
