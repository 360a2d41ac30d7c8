"""What a body sees: the run it belongs to, also from threads it starts."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from celery_durable import threads
from celery_durable.bodies import Body
from celery_durable.exceptions import DurableError, StepUsageError
from celery_durable.tokens import checked_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from celery_durable.executor import Execution
    from celery_durable.executor.crew import Crew


class Frame(NamedTuple):
    """Where this thread is: in which attempt, under which inlined task, inside which step, and its body.

    On an event loop, `crew` counts the tasks that this one starts.
    """

    execution: Execution
    scope: str = ""
    step: str | None = None
    calls: dict[str, int] | None = None
    crew: Crew | None = None
    body: Body | None = None


LONGEST_WAIT = timedelta(days=36_525)
_A_WEEK = timedelta(days=7)
_frame: ContextVar[Frame | None] = ContextVar("celery_durable_frame", default=None)
_outside: ContextVar[bool] = ContextVar("celery_durable_outside", default=False)
_active: threads.Actives[Execution, Body] = threads.Actives()
_elsewhere: list[Callable[[], bool]] = []


def runs_elsewhere(probe: Callable[[], bool]) -> None:
    """Register how to tell that the current thread executes something that is not a run."""
    _elsewhere.append(probe)


@contextmanager
def activate(execution: Execution) -> Iterator[None]:
    """Make `execution` the current attempt of this thread for a while."""
    token = _frame.set(Frame(execution))
    _active.begin(execution)
    try:
        yield
    finally:
        _active.end(execution)
        _frame.reset(token)


class inside_step:  # noqa: N801  (reads as a verb where it is used)
    """Mark that a step's body runs: steps called in it are plain functions, part of it.

    A class, for a generator costs every step three times as much.
    """

    __slots__ = ("_active", "_body", "_frame", "_token")

    def __init__(self, frame: Frame, key: str) -> None:
        self._body = Body()
        self._frame = Frame(frame.execution, frame.scope, key, {}, None, self._body)
        self._active = _active.of(frame.execution)

    def __enter__(self) -> None:
        if self._active is not None:
            self._active.bodies[self._frame.step or ""] = self._body
        self._token = _frame.set(self._frame)

    def __exit__(self, *_: object) -> None:
        _frame.reset(self._token)
        self._body.ends()
        if self._active is not None:
            self._active.bodies.pop(self._frame.step or "", None)


@contextmanager
def inlined(task: str) -> Iterator[None]:
    """Mark that another task's function runs inside this run: its steps are keyed under its name."""
    frame = _frame.get()
    if frame is None or frame.step is not None:
        yield
        return
    token = _frame.set(frame._replace(scope=f"{frame.scope}{task}/"))
    try:
        yield
    finally:
        _frame.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """Mark that this thread works for no run, whichever execute in this process."""
    token = _outside.set(True)
    try:
        yield
    finally:
        _outside.reset(token)


def here() -> Frame | None:
    """Return where this code is by its own context alone."""
    return _frame.get()


@contextmanager
def led(frame: Frame, crew: Crew) -> Iterator[None]:
    """Mark the first task of a body on an event loop."""
    token = _frame.set(frame._replace(crew=crew))
    try:
        yield
    finally:
        _frame.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Mark that what follows runs beside the tasks of the body, on another event loop."""
    frame = _frame.get()
    token = _frame.set(frame and frame._replace(crew=None))
    try:
        yield
    finally:
        _frame.reset(token)


@contextmanager
def among(frame: Frame, crew: Crew, *, ordered: bool = True) -> Iterator[str]:
    """Mark another task that a task of the body starts: its steps have keys of their own; yield its scope."""
    scope, own = crew.next(ordered=ordered)
    token = _frame.set(frame._replace(scope=scope, crew=own))
    try:
        yield scope
    finally:
        _frame.reset(token)


def current(*, older: bool = False) -> Frame | None:
    """Return where this thread is, or None outside a run.

    A thread that a body started has no context of its own, and joins the attempt that executed as it was
    started; the step that the attempt's own thread is in is its step.

    Arguments:
        older: whether a thread that is older than every attempt is in none, rather than refused: it may be
            anybody's.

    Raises `StepUsageError` when it cannot be told which attempt, or which step of it, is meant.
    """
    frame = _frame.get()
    if frame is not None or not _active or _outside.get():
        return frame
    if threading.current_thread() is threading.main_thread() or any(probe() for probe in _elsewhere):
        return None
    active = _active.of_this_thread(older=older)
    if active is None:
        return None
    inside = active.execution.inside
    if any(key != inside for key in tuple(active.bodies)):
        raise threads.refusal(
            "was started while steps are executed beside the body, so it cannot be told which of them, if "
            "any, it works for"
        )
    return Frame(active.execution, step=inside, body=active.bodies.get(inside or ""))


def place(frame: Frame, what: str) -> str:
    """Return the scope of a call; raise `StepUsageError` where a replay could not find it again."""
    if frame.crew is not None and not frame.crew.ordered:
        message = (
            f"{what} is called in a coroutine that asyncio.as_completed has started, in the order of a set. "
            f"Give it tasks, asyncio.as_completed([asyncio.create_task(one) for one in ...])"
        )
        raise StepUsageError(message, step=what)
    return frame.scope


@dataclass(frozen=True)
class RunContext:
    """The current run, for the body that runs in it."""

    _execution: Execution
    _step: str | None

    @property
    def id(self) -> str:
        """The run's id, which is the Celery task id."""
        return self._execution.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._execution.task

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._execution.attempt

    @property
    def deadline(self) -> datetime | None:
        """When the run is cancelled if it is not over by then, by the database's clock; None for never."""
        return self._execution.claim.deadline

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this run to stop."""
        return self._execution.cancelled

    @property
    def idempotency_key(self) -> str:
        """`run-id/step-key` inside a step, the run's id outside."""
        return f"{self._execution.name}/{self._step}" if self._step else self._execution.name

    def signal_token(self, name: str, *, expires: timedelta | float = _A_WEEK) -> str:
        """Return a signed token with which anybody may send this run one signal: for a link or a webhook.

        It goes to `send_signal_with_token`, mostly in a web application. It is the same at every replay, and
        all that one place in a body (or one step) makes stand for one signal.

        Arguments:
            name: the signal's name.
            expires: a `timedelta`, or seconds, by the database's clock; it is good for a week by default.

        Raises `ConfigurationError` when `durable_signal_secret` is not set, and `StepUsageError` for another
        `expires`, or what is no name of a signal.
        """
        checked_name(name)
        frame = current() or Frame(self._execution, step=self._step)
        try:
            span = expires if isinstance(expires, timedelta) else timedelta(seconds=expires)
        except (TypeError, ValueError, OverflowError) as error:
            message = f"signal_token({name!r}, expires={expires!r}): not a timedelta, nor seconds ({error})"
            raise StepUsageError(message) from error
        return self._execution.signal_token(frame, name, span)

    def set_tags(self, **tags: str) -> None:
        """Label the run; shown by the CLI and by monitoring. Costs one write."""
        self._execution.annotate(tags=tags)

    def set_progress(self, progress: object) -> None:
        """Say how far the run is: anything JSON holds, such as `{"done": 4, "of": 10}`. Costs one write."""
        self._execution.annotate(progress=progress)


def current_run() -> RunContext:
    """Return the run that this code executes in; raise `DurableError` outside of one."""
    frame = current()
    if frame is None:
        message = "There is no current run here: this code is not executed by a DurableTask in a worker"
        raise DurableError(message)
    return RunContext(frame.execution, frame.step)


def idempotency_key() -> str:
    """Return a key that is the same at every try of this step: what to send along to a payment API.

    Raises `DurableError` outside a step of a run.
    """
    frame = current()
    if frame is None or frame.step is None:
        message = "idempotency_key() names a step of a run: call it inside a @durable.step function"
        raise DurableError(message)
    return f"{frame.execution.name}/{frame.step}"
