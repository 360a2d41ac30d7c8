"""Awaiting what a step asks for: the same steps as in threads, driven on an event loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable import context
from celery_durable.exceptions import StepTimeLimitError
from celery_durable.executor.asks import Abandoned, Body, Note, Pause, Write
from celery_durable.executor.order import Order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from celery_durable.checkpoint import Checkpoint
    from celery_durable.executor.asks import Ask
    from celery_durable.executor.crew import Muster
    from celery_durable.executor.journal import Journal
    from celery_durable.executor.performing import Call
    from celery_durable.steps import Step

_AT_ONCE = 8  # writes; each takes one of the process's connections
_writers: dict[int, ThreadPoolExecutor] = {}  # by process: a forked child has none of its parent's threads


async def awaited(asks: Generator[Ask, Any, Any], body: AwaitedBody) -> Any:
    """Await all that a generator asks for, one after the other; return what it returns."""
    try:
        ask = next(asks)
        while True:
            try:
                answer = await _later(ask, body)
            except BaseException as error:  # noqa: BLE001  (it is raised again, where it was asked)
                ask = asks.throw(error)
            else:
                ask = asks.send(answer)
    except StopIteration as end:
        return end.value
    except Abandoned as abandoned:
        raise abandoned.cancelled from None


async def _later(ask: Ask, body: AwaitedBody) -> Any:
    if isinstance(ask, Write):
        return await body.written(ask)
    if isinstance(ask, Body):
        return await body.value()
    if isinstance(ask, Note):
        answer, cancelled = await _stored(ask.now, body)
        if cancelled is not None:
            raise body.given_up(cancelled)
        return answer
    assert isinstance(ask, Pause)  # noqa: S101  (there is nothing else)
    if body.cancelled is not None:
        cancelled, body.cancelled = body.cancelled, None
        raise body.given_up(cancelled)
    try:
        return await asyncio.sleep(ask.seconds)
    except asyncio.CancelledError as error:
        if body.in_flight:
            raise
        raise body.given_up(error) from None


async def _stored(work: Callable[[], Any], body: AwaitedBody) -> tuple[Any, asyncio.CancelledError | None]:
    """Do work in the store in a thread, to its end; return its answer, and what cancelled the step then."""
    pid = os.getpid()
    if pid not in _writers:
        _writers[pid] = ThreadPoolExecutor(_AT_ONCE, "celery-durable-write")
    future = asyncio.get_running_loop().run_in_executor(_writers[pid], work)
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = cancelled if body.in_flight else error
    return future.result(), cancelled


def current_task() -> asyncio.Task[Any] | None:
    """Return the asyncio task of this thread, if a loop runs in it."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class AwaitedBody:
    """The body of one `async def` step.

    Attributes:
        cancelled: what came too late to cancel it: its last try had ended, or made nothing of it.

    Arguments:
        frame: where it is called.
        step: the step.
        call: its arguments.
        journal: says when the run leaves its worker.
    """

    def __init__(self, frame: context.Frame, step: Step[Any, Any], call: Call, journal: Journal) -> None:
        self._frame = frame
        self._step = step
        self._call = call
        self._journal = journal
        self._muster: Muster | None = frame.crew.muster if frame.crew is not None else None
        self.cancelled: asyncio.CancelledError | None = None

    async def value(self) -> Any:
        """Run the body; return its value.

        Raises `Abandoned` when the run's own code cancels it, which is stored like an error, and
        `StepTimeLimitError`.
        """
        inner = asyncio.Task(self._inside())
        cancelled = await self._ended(inner)
        if cancelled is not None and inner.cancelled():
            raise self.given_up(cancelled)
        self.cancelled = cancelled
        return inner.result()

    async def written(self, write: Write) -> Any:
        """Store how the step ended; return when it is its turn to be heard of."""
        if self._muster is None:
            return (await _stored(write.now, self))[0]
        order = self._muster.order
        arrival = order.expect(write.number)
        try:
            answer, cancelled = await _stored(write.now, self)
            cancelled = cancelled or self.cancelled
            if cancelled is not None:
                await self._note_too_late()
        except BaseException:
            order.give_up(arrival)
            raise
        if await order.arrival(arrival) and cancelled is None:
            await self._note_too_late()
        return answer

    async def _note_too_late(self) -> None:
        """Store that the body has cancelled the step too late: what waited for it goes on as cancelled."""
        if not self._closing and not self.in_flight:
            await _stored(partial(self._journal.note_too_late, self._call.key), self)

    def given_up(self, cancelled: asyncio.CancelledError) -> BaseException:
        """Return what ends the step that was cancelled: the body's own doing is stored like an error."""
        return cancelled if self._closing else Abandoned(cancelled)

    @property
    def in_flight(self) -> bool:
        """Whether the run leaves its worker: a step is not cancelled then, but finished and stored."""
        return self._journal.leaving is not None and not self._closing

    async def _inside(self) -> Any:
        with context.inside_step(self._frame, self._call.key):
            return await self._step.function(*self._call.args, **self._call.kwargs)

    async def _ended(self, inner: asyncio.Task[Any]) -> asyncio.CancelledError | None:
        """Return when the body has ended: by itself, by its limit, or cancelled with its caller."""
        limit = self._step.step_options.time_limit
        cancelled = None
        while not inner.done():
            try:
                done, _ = await asyncio.wait({inner}, timeout=limit)
            except asyncio.CancelledError as error:
                if not self.in_flight:
                    cancelled, limit = error, None
                    inner.cancel()
                continue
            if not done:
                inner.cancel()
                await asyncio.wait({inner})
                message = f"Step {self._call.key!r} ran longer than its time_limit of {limit:g} s"
                raise StepTimeLimitError(message, seconds=limit)
        return cancelled

    @property
    def _closing(self) -> bool:
        return self._muster is not None and self._muster.closing


@contextmanager
def flight(frame: context.Frame) -> Iterator[None]:
    """Note that a step is being executed: its run does not end before it is stored."""
    muster = frame.crew.muster if frame.crew is not None else None
    if muster is None:
        yield
        return
    if muster.ending:
        raise asyncio.CancelledError  # the body is over
    landed = asyncio.get_running_loop().create_future()
    muster.steps.add(landed)
    try:
        yield
    finally:
        muster.steps.discard(landed)
        landed.set_result(None)


async def heard_again(frame: context.Frame, known: Checkpoint) -> None:
    """Wait until it is the turn of a stored outcome; or to be cancelled, as that step was at first."""
    muster = frame.crew.muster if frame.crew is not None else None
    order = muster.order if muster is not None else Order()
    arrival = order.expect(known.seq)
    cancelled = None
    if known.abandoned or known.too_late:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            if muster is None or muster.closing:
                order.give_up(arrival)
                raise
            cancelled = error
    await order.arrival(arrival)
    if known.abandoned and cancelled is not None:
        raise cancelled
