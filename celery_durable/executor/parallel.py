"""Calls side by side on threads, which all end before their caller goes on."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import LeaseLostError
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_THREADS = 32


def side_by_side(work: Sequence[Callable[[], Any]], *, threads: int | None) -> list[tuple[bool, Any]]:
    """Do all of it; return for each, in its order, success and value, or error.

    What is no failure of a step (the lease is lost, the run is cancelled or leaves its worker) is raised when
    all the others have come to their end: a run leaves with every step stored that it has begun.
    """
    size = min(len(work), threads or _MOST_THREADS)
    if size <= 1:
        ended = [_outcome(one) for one in work]
    else:
        with ThreadPoolExecutor(size, thread_name_prefix="celery-durable-step") as pool:
            futures = [pool.submit(contextvars.copy_context().run, _outcome, one) for one in work]
            ended = [future.result() for future in futures]
    leaving = [error for succeeded, error in ended if not succeeded and _passes_through(error)]
    if leaving:
        raise min(leaving, key=_urgency)
    return ended


def _outcome(work: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        return True, work()
    except BaseException as error:  # noqa: BLE001  (its caller decides, in the thread of the body)
        return False, error


def _passes_through(error: BaseException) -> bool:
    return isinstance(error, LeaseLostError) or not isinstance(error, Exception)


def _urgency(error: BaseException) -> tuple[int, float]:
    """A lost lease first, then the shortest way back."""
    if isinstance(error, LeaseLostError):
        return 0, 0.0
    if isinstance(error, Suspended):
        return 2, error.delay.total_seconds()
    return 1, 0.0
