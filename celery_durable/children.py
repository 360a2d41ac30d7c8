"""`call`, `gather` and `map`: runs that a run starts and waits for, and steps side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.canvas import Signature

from celery_durable import context, outgoing
from celery_durable.exceptions import ConfigurationError, StepUsageError
from celery_durable.executor.children import Ask
from celery_durable.serialization import digest
from celery_durable.steps import Step, StepCall
from celery_durable.store.writes import SENT_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_durable.store.writes import NewRun

PLAIN = "celery_durable.plain"
"""The durable task that executes a plain one, or a canvas, as a child."""


def call(signature: Any, *, detached: bool = False) -> Any:
    """Start a task as a child of this run, wait for it off the worker, and return its result.

    Outside a run the task is applied here and now.

    Arguments:
        signature: of a durable or a plain task, on any queue; or a chain, group or chord.
        detached: whether it goes on when this run is cancelled; by default it is cancelled, too.

    Raises what the child raised; `TaskRevokedError` for one that was cancelled.
    """
    name = getattr(signature, "name", signature)
    return _results(_tasks(f"call:{name}", [signature], detached=detached))[0]


def gather(
    *calls: Any, return_exceptions: bool = False, max_concurrency: int | None = None, detached: bool = False
) -> list[Any]:
    """Do several things side by side, and return their results in this order when all are over.

    Signatures are started as children on any worker, and the run leaves its own meanwhile. Calls of steps
    (`fetch.s(url)`) are made in this process, on threads.

    Arguments:
        calls: signatures of tasks, or calls of steps; not both.
        return_exceptions: return errors among the results instead of raising the first of them.
        max_concurrency: how many of them may be executed at a time; steps: at most 32.
        detached: whether children go on when this run is cancelled.

    Raises the first error in the order of the calls, when all are over; `StepUsageError` for what is neither.
    """
    ended = _gathered("gather", calls, max_concurrency, detached=detached)
    return _results(ended, return_exceptions=return_exceptions)


def map(  # noqa: A001  (the word for it)
    task_or_step: Any,
    items: Iterable[Any],
    *,
    return_exceptions: bool = False,
    max_concurrency: int | None = None,
    detached: bool = False,
) -> list[Any]:
    """Apply a task or a step to each item side by side, and return the results in their order.

    Arguments:
        task_or_step: a task, whose calls become children; or a step, whose calls are made on threads.
        items: one argument for each call; the same ones, in the same order, at every replay.
        return_exceptions: return errors among the results instead of raising the first of them.
        max_concurrency: how many of them may be executed at a time; steps: at most 32.
        detached: whether children go on when this run is cancelled.

    Raises the first error in the order of the items, when all are over.
    """
    if not isinstance(task_or_step, (Task, Step)):
        message = f"map({task_or_step!r}, …): it takes a task or a @durable.step"
        raise StepUsageError(message)
    calls = [task_or_step.s(item) for item in items]
    ended = _gathered(f"map:{task_or_step.name}", calls, max_concurrency, detached=detached)
    return _results(ended, return_exceptions=return_exceptions)


def _gathered(
    name: str, calls: Sequence[Any], max_concurrency: int | None, *, detached: bool
) -> list[tuple[bool, Any]]:
    if max_concurrency is not None:
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int):
            message = f"{name}: max_concurrency={max_concurrency!r} is not a whole number"
            raise StepUsageError(message)
        if max_concurrency < 1:
            message = f"{name}: max_concurrency={max_concurrency} would never begin"
            raise StepUsageError(message)
    steps = [one for one in calls if isinstance(one, StepCall)]
    if steps and len(steps) < len(calls):
        message = f"{name} takes signatures of tasks or calls of steps, not both: make it two"
        raise StepUsageError(message)
    if steps:
        return _steps(steps, max_concurrency)
    return _tasks(name, calls, abreast=max_concurrency, detached=detached)


def _results(ended: list[tuple[bool, Any]], *, return_exceptions: bool = False) -> list[Any]:
    if not return_exceptions:
        for succeeded, value in ended:
            if not succeeded:
                raise value
    return [value for _, value in ended]


def _steps(calls: Sequence[StepCall], threads: int | None) -> list[tuple[bool, Any]]:
    frame = context.current()
    if frame is None or frame.step is not None:
        return [_outcome(one) for one in calls]
    return frame.execution.steps(frame, calls, threads)


def _outcome(work: Any) -> tuple[bool, Any]:
    try:
        return True, work()
    except Exception as error:  # noqa: BLE001  (gather decides)
        return False, error


def _tasks(
    name: str, signatures: Sequence[Any], *, abreast: int | None = None, detached: Any = False
) -> list[tuple[bool, Any]]:
    for one in signatures:
        if not isinstance(one, Signature):
            message = f"{name}: {one!r} is no signature; write task.s(…), or step.s(…) for a step"
            raise StepUsageError(message)
    if not isinstance(detached, bool):
        message = f"{name}: detached={detached!r} is neither True nor False"
        raise StepUsageError(message)
    frame = context.current()
    if frame is None:
        return [_outcome(lambda one=one: one.apply().get(disable_sync_subtasks=False)) for one in signatures]
    if not signatures:
        return []
    ask = Ask(
        name=name,
        arguments=digest({"calls": [[one.task, list(one.args), dict(one.kwargs)] for one in signatures]}),
        size=len(signatures),
        new_runs=lambda ids: _new_runs(signatures, ids),
        abreast=abreast,
        detached=detached,
    )
    return frame.execution.children(frame, ask)


def _new_runs(signatures: Sequence[Any], ids: Sequence[str]) -> list[NewRun]:
    runs = [_new_run(one, child_id) for one, child_id in zip(signatures, ids, strict=True)]
    return runs[:SENT_AT_ONCE] + [replace(run, publish=False) for run in runs[SENT_AT_ONCE:]]


def _new_run(signature: Any, child_id: str) -> NewRun:
    """Let Celery send a signature, and catch what it would have sent."""
    chosen = signature.clone()
    app = chosen.app
    task = app.tasks.get(chosen.task)
    with outgoing.collecting(child_id) as caught:
        if chosen.subtask_type is None and getattr(task, "durable", False):
            chosen.options.pop("task_id", None)
            chosen.apply_async(task_id=child_id, add_to_parent=False)
        else:
            app.tasks[PLAIN].start(chosen, child_id)
    if caught.successor is None:
        message = (
            f"{signature.task} was not sent: a before_task_publish handler, a router or its own apply_async "
            f"dropped it"
        )
        raise ConfigurationError(message)
    return caught.successor
