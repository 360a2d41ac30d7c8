"""`on_rollback`: what takes a finished step back, if the run ends badly after all."""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable import context
from celery_durable.exceptions import StepUsageError
from celery_durable.steps import Step, StepOptions

if TYPE_CHECKING:
    from collections.abc import Callable


def on_rollback(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Have `function(*args, **kwargs)` called if this run fails for good or is cancelled.

    Compensations are steps: the last registered one is called first, each is retried by its own policy (make
    it a `step` or a `transaction` with options), stored, and not repeated after a crash. Registering one
    costs no write: register it right behind the step that it takes back. Outside of a run nothing is
    registered.

    A `functools.partial` counts as the function in it, called with the arguments of both.

    Raises `StepUsageError` inside a step, for that step is not finished yet, for what is no function, and for
    arguments that do not fit it.

    >>> def refund(order: int) -> None: ...
    >>> on_rollback(refund, 7)
    """
    while isinstance(function, partial):
        args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
    told: Any = function
    if not callable(told) or not isinstance(getattr(told, "__name__", None), str):
        message = (
            f"on_rollback({function!r}): it takes a function (also a step, or a functools.partial) and its "
            f"arguments"
        )
        raise StepUsageError(message)
    step = function if isinstance(function, Step) else Step(function, StepOptions())
    _check(step, args, kwargs)
    frame = context.current()
    if frame is None:
        return
    if frame.step is not None:
        message = (
            f"on_rollback is called inside the step {frame.step!r}, which may still fail: call it in the "
            f"body, right behind the step"
        )
        raise StepUsageError(message, step=frame.step)
    frame.execution.on_rollback(frame, step, args, kwargs)


def _check(step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Find out now what could not be called when it is needed."""
    handle = () if step.transacted is None else (None,)
    try:
        signature = inspect.signature(step.function)
    except (TypeError, ValueError):
        return  # one that cannot be inspected
    try:
        signature.bind(*handle, *args, **kwargs)
    except TypeError as error:
        message = f"on_rollback({step.name}): it could not be called when it is needed: {error}"
        raise StepUsageError(message, step=step.name) from None
