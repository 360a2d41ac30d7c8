"""Celery on nothing but Postgres: `durable+postgresql://` and `durable+embedded://` as broker URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.config import Settings

_TRANSPORT = "celery_durable.transport.postgres:PostgresTransport"
_SCHEMES = ("durable", "durable+postgresql", "durable+postgres", "durable+embedded")


def register() -> None:
    """Teach kombu the broker URLs of celery-durable. It may be called again.

    An app with durable tasks, and every `celery` command, has done so; an app without them does it itself.
    kombu cuts a URL at its `+`, so the transport it looks for is `durable`; for a URL in a list of
    alternatives it looks for the whole scheme.
    """
    from kombu.transport import TRANSPORT_ALIASES  # not needed by who only uses the store

    for scheme in _SCHEMES:
        TRANSPORT_ALIASES[scheme] = _TRANSPORT


def share_settings(conf: Any, settings: Settings) -> None:
    """Let an app's broker, if it is one of ours, follow the app's `durable_` settings.

    Arguments:
        conf: the app's configuration; what its `broker_transport_options` say is left alone.
        settings: where the store is, and how to talk to it.
    """
    urls = (conf.broker_url, conf.broker_read_url, conf.broker_write_url)
    if not any("durable" in str(url) for url in urls):
        return
    conf.broker_transport_options = {
        "schema": settings.schema,
        "auto_migrate": settings.auto_migrate,
        "prepare_statements": settings.prepare_statements,
        "lease": settings.lease,
        **(conf.broker_transport_options or {}),
    }
