"""`async def` tasks: their bodies run on the process's event loop, and see their task and request there."""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from celery import _state
from celery.app.autoretry import add_autoretry_behaviour
from celery.exceptions import Ignore, Reject, Retry

from celery_durable import context
from celery_durable.exceptions import TERMINAL, RunCancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from celery import Task

DECISIVE: tuple[type[BaseException], ...] = (RunCancelled, *TERMINAL, Retry, Ignore, Reject)
"""What decides about the run, also as one of several errors of a task group."""


class Driven(NamedTuple):
    """The task whose body runs on the event loop, with its request: Celery knows them by thread only."""

    task: Any
    request: Any


_driven: ContextVar[Driven | None] = ContextVar("celery_durable_driven", default=None)


def request_of(task: Any) -> Any:
    """Return the request of a task whose body runs on the event loop here, or None."""
    driven = _driven.get()
    return driven.request if driven is not None and driven.task is task else None


@contextmanager
def known_to_celery() -> Iterator[None]:
    """Let Celery see the current task and request in this thread, for a call that does not wait."""
    driven = _driven.get()
    if driven is None or _state.get_current_task() is not None:
        yield
        return
    tasks: Any = getattr(_state, "_task_stack")  # noqa: B009  (the stubs do not know it)
    tasks.push(driven.task)
    driven.task.request_stack.push(driven.request)
    try:
        yield
    finally:
        driven.task.request_stack.pop()
        tasks.pop()


def is_async(run: Callable[..., Any]) -> bool:
    """Whether a task's function is an `async def` one, below what Celery has put around it."""
    return inspect.iscoroutinefunction(inspect.unwrap(run))


class _Retrying:
    """A task to Celery's retry wrapper: its `run` waits for the body, so that it sees what it raises."""

    def __init__(self, task: Task[..., Any], run: Callable[..., Any]) -> None:
        self.task = task
        self.run = run

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_run":
            raise AttributeError(name)
        return getattr(self.task, name)


def waiting(task: Any, run: Callable[..., Any], *, retried: bool) -> Callable[..., Any]:
    """Return a function that runs an `async def` body and waits for its end.

    Arguments:
        task: the task.
        run: its `async def` function.
        retried: whether Celery's retry policy is put around it.
    """

    @functools.wraps(run)
    def body(*args: Any, **kwargs: Any) -> Any:
        value = completed(task, run(*args, **kwargs))
        return _dumped(task, value)

    if not retried:
        return body
    shadow: Any = _Retrying(task, body)
    add_autoretry_behaviour(shadow)
    run_retried: Callable[..., Any] = shadow.run
    return run_retried


def completed(task: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the event loop, and return what it returns.

    As the body of a run if it is called in one, and where the loop itself calls it (a task applied eagerly)
    in a thread and a loop of its own.
    """
    from celery_durable.loop import event_loop  # with asyncio, which most apps do not need

    frame = context.here()
    loop = event_loop()
    token = _driven.set(Driven(task, task.request))
    try:
        if loop.here:
            return _apart(coroutine)
        if frame is None or frame.step is not None or frame.crew is not None:
            return loop.complete(coroutine)
        muster = frame.execution.muster()
        try:
            led = frame.execution.led(coroutine, frame, muster)
            return loop.complete(led, muster.abort)
        except BaseException as error:
            from celery_durable.executor.crew import decisive

            found = decisive(error, DECISIVE)
            if found is error:
                raise
            raise found from error
    finally:
        _driven.reset(token)


def _apart(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    def run() -> Any:
        with context.alone():
            return asyncio.run(coroutine)

    with ThreadPoolExecutor(1, "celery-durable-eager") as thread:
        return thread.submit(copy_context().run, run).result()


async def inlined(task: str, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await another task's function inside a run, its steps keyed under its name."""
    with context.inlined(task):
        return await coroutine


def _dumped(task: Any, value: Any) -> Any:
    """Return a pydantic model as a task with `pydantic=True` returns it; Celery's wrapper saw a coroutine."""
    if getattr(task, "_dump_pydantic_arguments", None) is not None and hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return value
