"""The store: everything celery-durable keeps, in one Postgres schema, through one small set of statements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.store.database import Store

__all__ = ["Store"]


def __getattr__(name: str) -> Any:
    # Loaded at first use: an app that only declares its tasks needs no database driver yet.
    if name != "Store":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from celery_durable.store.database import Store

    return Store
