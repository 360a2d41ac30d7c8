"""`doctor`: examine the store and the broker, and say what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kombu.exceptions import KombuError

from celery_durable.exceptions import ConfigurationError, StoreError
from celery_durable.operations.findings import Finding, about_queues, judge
from celery_durable.operations.queues import queues_of
from celery_durable.operations.stores import store_of
from celery_durable.store.health import HealthStore
from celery_durable.store.url import redact

if TYPE_CHECKING:
    from celery import Celery

_BROKER_SECONDS = 3


@dataclass(frozen=True)
class Report:
    """What the doctor found; `ok` unless there is an error among it."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return all(finding.level != "error" for finding in self.findings)


def examine(app: Celery) -> Report:
    """Examine what an app's runs depend on.

    Raises `ConfigurationError` when the result backend is not a durable one.
    """
    store = store_of(app)
    try:
        health = HealthStore(store.connections, schema=store.settings.schema).examine()
    except StoreError as error:
        advice = f"Is Postgres up, and is this its address? {redact(store.url)}"
        return Report((Finding("connection", "error", str(error), advice), _broker(app)))
    return Report((*judge(health, store.settings), _broker(app), *_queues(app)))


def _queues(app: Celery) -> list[Finding]:
    """Look into the queues, where the broker lets us."""
    try:
        return list(about_queues(queues_of(app)))
    except (ConfigurationError, StoreError):
        return []  # another broker, or one that `_broker` has found to be away


def _broker(app: Celery) -> Finding:
    with app.connection_for_write() as connection:
        address = connection.as_uri()
        named = (*connection.connection_errors, *connection.channel_errors)
        errors: tuple[type[BaseException], ...] = (KombuError, OSError, *named)
        try:
            connection.ensure_connection(max_retries=1, timeout=_BROKER_SECONDS)
        except errors as error:
            return Finding(
                "broker",
                "error",
                f"The broker {address} does not answer: {error}",
                "Runs are stored meanwhile, and sent when it is back.",
            )
    return Finding("broker", "ok", f"{address} answers")
