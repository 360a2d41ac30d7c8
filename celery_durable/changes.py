"""Code changes: runs that have passed a place in a body stay on the branch they took there."""

from __future__ import annotations

from typing import Any

from celery_durable import context
from celery_durable.exceptions import StepUsageError


def patched(change: str) -> bool:
    """Say whether this run takes the new branch of a change to its task's body.

    A run that comes to this place for the first time takes it, and keeps to it. A run whose history goes on
    behind this place was here before with the old code: it stays on the old branch. Costs one write, once.
    Outside a run, and inside a step, it is the new branch.

    Arguments:
        change: a name of the change, the same wherever its branches are.

    Raises `StepUsageError` for what is no name.

    Example:
        >>> if patched("sms-instead-of-mail"):     # doctest: +SKIP
        ...     send_sms(order)
        ... else:
        ...     send_mail(order)
    """
    told: Any = change
    if not isinstance(told, str) or not told or not told.isprintable():
        message = f"patched({change!r}): a change is named by a printable, non-empty text"
        raise StepUsageError(message)
    frame = context.current()
    if frame is None or frame.step is not None:
        return True
    return frame.execution.patched(change)
