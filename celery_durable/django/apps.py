"""The Django app: `manage.py migrate` creates the store's tables and brings them up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.db import router
from django.db.models.signals import post_migrate

from celery_durable.store.url import django_alias

if TYPE_CHECKING:
    from celery_durable.store import Store

_LABEL = "celery_durable"


class DurableConfig(AppConfig):  # type: ignore[misc]  # (Django ships no types)
    """Migrates the store with the database that it is in."""

    name = "celery_durable.django"
    label = _LABEL
    verbose_name = "celery-durable"

    def ready(self) -> None:
        """Listen for the end of `migrate`."""
        post_migrate.connect(_migrate, sender=self, dispatch_uid="celery-durable-migrate")


def _migrate(*, using: str, verbosity: int = 1, **options: Any) -> None:
    """Create or upgrade the tables, when the store is in the database that was just migrated.

    That includes the database that a test runner has made.
    """
    store = _store()
    if store is None or django_alias(store.url) != using or not router.allow_migrate(using, _LABEL):
        return
    for migration in store.migrate():
        if verbosity >= 1:
            name = f"{_LABEL}.{migration.number:04}_{migration.name}"
            print(f"  Applying {name}... OK", file=options.get("stdout"))  # as `migrate` itself does


def _store() -> Store | None:
    """Return the store of the project's Celery app, None when it has another result backend."""
    from celery import current_app  # the project's `__init__` has made it by now

    from celery_durable.backend import DurableBackend

    backend: Any = current_app.backend
    return backend.store if isinstance(backend, DurableBackend) else None
