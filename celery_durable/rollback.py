"""`on_rollback`: what takes a finished step back, if the run ends badly after all."""

from __future__ import annotations

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

    Raises `StepUsageError` inside a step: that step is not finished yet.

    >>> def refund(order: int) -> None: ...
    >>> on_rollback(refund, 7)
    """
    frame = context.current()
    if frame is None:
        return
    if frame.step is not None:
        message = (
            f"on_rollback is called inside the step {frame.step!r}, which may still fail: call it in the "
            f"body, right behind the step"
        )
        raise StepUsageError(message, step=frame.step)
    step = function if isinstance(function, Step) else Step(function, StepOptions())
    frame.execution.on_rollback(frame, step, args, kwargs)
