"""Retention: final runs go, whole trees at a time, with everything that belongs to them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from celery_durable.store import Store


def prune(store: Store, *, result_expires: float | None) -> int:
    """Delete final runs past `durable_retention` (or `result_expires`); return how many."""
    age = store.settings.retention if store.settings.retention is not None else result_expires
    return store.prune(timedelta(seconds=age)) if age else 0
