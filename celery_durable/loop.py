"""The one event loop of this process: `async def` bodies run on it, in a thread of its own.

It outlives the runs, so that clients made for it (HTTP, Redis, …) can be used by the next one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable import context
from celery_durable.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future


class _Threads(ThreadPoolExecutor):
    """Threads that take their caller's context along, as asyncio.to_thread does: so they know its run."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(copy_context().run, function, *args, **kwargs)


class EventLoop:
    """An event loop in a daemon thread.

    The tasks that a body starts on it get a scope of their own, in the order in which they are started: so
    the keys of their steps do not depend on who is faster.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        loop: Any = asyncio.new_event_loop()
        self._loop: asyncio.AbstractEventLoop = loop
        loop.set_task_factory(_new_task)
        if isinstance(self._loop, asyncio.BaseEventLoop):
            loop.call_at = partial(_call_at, loop.call_at)
        loop.set_default_executor(_Threads(thread_name_prefix="celery-durable-async"))
        self._thread = threading.Thread(target=self._run, name="celery-durable-loop", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # a body raised it; its task carries it to the thread that waits for the body

    @property
    def here(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def complete(self, coroutine: Coroutine[Any, Any, Any], abort: Callable[[], None] | None = None) -> Any:
        """Run a coroutine, in a copy of this thread's context, and return what it returns.

        Arguments:
            coroutine: what to run.
            abort: called on the loop when this thread is interrupted (a time limit), to end the coroutine;
                by default it is cancelled. What interrupted is raised when it has ended.
        """
        if self.here:
            coroutine.close()
            message = (
                "An async task was applied on the event loop itself, which would wait for itself: await it"
            )
            raise ConfigurationError(message)
        outcome: Future[Any] = asyncio.run_coroutine_threadsafe(_carried(coroutine), self._loop)
        try:
            value, error = outcome.result()
        except BaseException as error:
            self._loop.call_soon_threadsafe(abort or outcome.cancel)
            # A process that is told to end does, also if a body holds up the loop or ignores its cancel.
            _wait(outcome, _LAST_MOMENT if isinstance(error, SystemExit) else None)
            raise
        if error is not None:
            raise error
        return value


def _wait(outcome: Future[Any], seconds: float | None) -> None:
    over = threading.Event()
    outcome.add_done_callback(lambda _: over.set())
    over.wait(seconds)


async def _carried(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Return a value or an error; some errors, raised in a task, would end the loop."""
    try:
        return await coroutine, None
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
        return None, error


def _new_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
) -> asyncio.Task[Any]:
    frame = context.here()
    crew = None if frame is None or frame.step is not None else frame.crew
    if frame is None or crew is None or options.get("context") is not None:
        return asyncio.Task(coroutine, loop=loop, **options)
    options.pop("context", None)
    with context.among(frame, crew, ordered=not _started_as_completed(coroutine)) as scope:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    crew.muster.joined(task, scope)
    return task


def _call_at(
    call_at: Callable[..., asyncio.TimerHandle],
    when: float,
    callback: Callable[..., Any],
    *args: Any,
    **options: Any,
) -> asyncio.TimerHandle:
    """Start a timer; one of a body, not of a step, has its place among what arrives there."""
    frame = context.here()
    if frame is None or frame.crew is None:
        return call_at(when, callback, *args, **options)
    timer = frame.crew.muster.order.timer(partial(callback, *args), options.get("context"))
    timer.handle = call_at(when, timer, **options)
    return timer.handle


def _started_as_completed(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Whether `asyncio.as_completed` starts this coroutine: it does so in the order of a set.

    Steps have their keys by then.
    """
    frame: Any = sys._getframe(2)  # noqa: SLF001  (whoever starts a task does not say so)
    while frame is not None and frame.f_globals.get("__name__") in ("asyncio.base_events", "asyncio.tasks"):
        if frame.f_code.co_name == "as_completed" or type(frame.f_locals.get("self")).__name__ == _ITERATOR:
            return getattr(coroutine, "__qualname__", "") != "Execution._awaited"
        frame = frame.f_back
    return False


_LAST_MOMENT = 1.0  # seconds
_ITERATOR = "_AsCompletedIterator"  # from Python 3.13 on
_loops: list[EventLoop] = []
_lock = threading.Lock()


def event_loop() -> EventLoop:
    """Return this process's event loop, which starts at its first use; a forked child gets its own.

    Raises `ConfigurationError` under gevent, whose greenlets cannot share a thread with it.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        message = (
            "async def tasks and steps run on an event loop in a thread of its own, which gevent has "
            "replaced by greenlets. Run them in a worker with --pool prefork, threads or solo"
        )
        raise ConfigurationError(message)
    with _lock:
        if not _loops or _loops[-1].pid != os.getpid():
            _loops.append(EventLoop())
        return _loops[-1]
