"""Performing a step that is not stored yet: its tries, the pauses between them, what is stored of each."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable import checkpoint as outcomes
from celery_durable import context, texts
from celery_durable.exceptions import (
    LeaseLostError,
    SerializationError,
    StepInterruptedError,
    StepUsageError,
)
from celery_durable.limits import time_limit
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.executor.journal import Journal
    from celery_durable.seam import Seam
    from celery_durable.steps import Step


class Call(NamedTuple):
    """One call of a step: its key, and the arguments as they are compared and as they are passed."""

    key: str
    arguments: tuple[bytes, str]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seq: int | None = None  # shared by calls that are made side by side


class Performer:
    """Runs step bodies for one attempt.

    Attributes:
        inside: the key of the step whose body the attempt's own thread is in.

    Arguments:
        journal: where the outcomes go.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(self, journal: Journal, settings: Settings, seam: Seam) -> None:
        self.inside: str | None = None
        self._thread = threading.get_ident()
        self._journal = journal
        self._settings = settings
        self._seam = seam
        self._control_flow: tuple[type[BaseException], ...] = (*seam.control_flow, LeaseLostError)

    def perform(
        self, frame: context.Frame, step: Step[Any, Any], call: Call, known: Checkpoint | None
    ) -> Any:
        """Run the step until it is finished or its tries are used up, and store each of them."""
        journal, options = self._journal, step.step_options
        tries, spent = (known.tries, known.spent) if known is not None else (0, 0)
        seq = call.seq or journal.next_seq()
        if known is not None and known.outcome == outcomes.STARTED:
            raise _interrupted(call.key)
        while True:
            journal.may_go_on()
            tries += 1
            if options.at_most_once:
                journal.save(
                    journal.entry(
                        call.key, outcomes.STARTED, call.arguments, tries=tries, spent=spent, seq=seq
                    )
                )
            began = time.monotonic()
            try:
                value, codec, output = self._value(frame, step, call)
            except self._control_flow:
                raise
            except Exception as error:
                delay = _delay(step, error, tries - spent)
                self._save_error(call, error, delay, tries, spent, seq, began)
                if delay is None:
                    raise
                self._pause(delay)
            else:
                entry = journal.entry(
                    call.key,
                    outcomes.OK,
                    call.arguments,
                    tries=tries,
                    spent=spent,
                    seq=seq,
                    output=output,
                    codec=codec,
                    seconds=time.monotonic() - began,
                )
                journal.save(entry, relaxed=options.commit == "async")
                return value

    def _value(self, frame: context.Frame, step: Step[Any, Any], call: Call) -> tuple[Any, str, bytes]:
        """Return a body's value as the run gets it, and as it is stored."""
        value = self._body(frame, step, call)
        codec, coder = self._seam.codec(step.step_options.serializer)
        output = coder.encode(value, step.returns, where=f"step {call.key!r}")
        return coder.decode(output, step.returns), codec, output  # before it is stored: it must come back

    def _body(self, frame: context.Frame, step: Step[Any, Any], call: Call) -> Any:
        owner = threading.get_ident() == self._thread
        if owner:
            self.inside = call.key
        function: Callable[..., Any] = step.function
        try:
            with context.inside_step(frame, call.key):
                limit = step.step_options.time_limit
                if limit is None:
                    return function(*call.args, **call.kwargs)
                with time_limit(limit, f"Step {call.key!r}"):
                    return function(*call.args, **call.kwargs)
        finally:
            if owner:
                self.inside = None

    def _save_error(  # noqa: PLR0917  (one failed try in full)
        self,
        call: Call,
        error: Exception,
        delay: float | None,
        tries: int,
        spent: int,
        seq: int,
        began: float,
    ) -> None:
        form, dumped = self._seam.dump_error(error)
        entry = self._journal.entry(
            call.key,
            outcomes.ERROR if delay is None else outcomes.TRYING,
            call.arguments,
            tries=tries,
            spent=spent,
            seq=seq,
            output=dumped,
            codec=form,
            error=texts.line(error),
            seconds=time.monotonic() - began,
        )
        self._journal.save(entry)

    def _pause(self, delay: float) -> None:
        if delay > self._settings.step_sleep:
            raise self._journal.leave(Suspended("suspended", delay, "retry"))
        threading.Event().wait(delay)


def _delay(step: Step[Any, Any], error: Exception, failures: int) -> float | None:
    if step.step_options.at_most_once or isinstance(error, (SerializationError, StepUsageError)):
        return None
    return step.step_options.delay_after(error, failures)


def _interrupted(key: str) -> StepInterruptedError:
    message = (
        f"The at_most_once step {key!r} was started by an attempt that ended before the outcome was "
        f"stored. Find out what it did, then cancel the run, or start another"
    )
    return StepInterruptedError(message, step=key)
