"""Retention: final runs go, whole trees at a time, with everything that belongs to them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_durable.store import Store


def prune(store: Store, *, result_expires: float | None, failure_expires: float | None = None) -> int:
    """Delete final runs past `durable_retention`, else `result_expires`; return how many.

    Failed ones go by `result_failure_expires`, where that is set and `durable_retention` is not.
    """
    age = store.settings.retention if store.settings.retention is not None else result_expires
    if not age:
        return 0
    failed_age = failure_expires if store.settings.retention is None else None
    return store.prune(
        timedelta(seconds=age), failed_age=timedelta(seconds=failed_age) if failed_age else None
    )
