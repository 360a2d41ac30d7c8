"""The store behind an app."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.exceptions import ConfigurationError
from celery_durable.store import Store

if TYPE_CHECKING:
    from celery import Celery


def store_of(app: Celery) -> Store:
    """Return the store of the app's result backend.

    Raises `ConfigurationError` when the result backend is not a durable one.
    """
    store = getattr(app.backend, "store", None)
    if not isinstance(store, Store):
        name = app.main or "this app"
        used = app.backend.as_uri() if app.conf.result_backend else "none"
        message = (
            f"Runs are kept in the result backend, and that of {name} is {used}. "
            f"Set result_backend = 'durable+postgresql://user@host/database', or 'durable+embedded://'"
        )
        raise ConfigurationError(message, setting="result_backend")
    return store
