"""The databases of a Django project, as libpq connects to them."""

from __future__ import annotations

import sys
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from celery_durable.exceptions import ConfigurationError


def conninfo(alias: str) -> str:
    """Return what libpq connects to for `settings.DATABASES[alias]`, as it is now: a test runner renames it.

    Raises `ConfigurationError` for an alias that does not exist, or that is no Postgres.
    """
    wrapper = _wrapper(alias)
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    chosen = {
        name: value
        for name, value in wrapper.get_connection_params().items()
        if name in known and name != "client_encoding"
    }
    return make_conninfo(**chosen)


def may_be_dropped() -> bool:
    """Say whether this is a test run of Django's, which drops its databases and minds open connections."""
    mail = sys.modules.get("django.core.mail")
    return mail is not None and hasattr(mail, "outbox")  # documented as there in tests only


def _wrapper(alias: str) -> Any:
    try:
        from django.db import connections
        from django.utils.connection import ConnectionDoesNotExist
    except ImportError as error:
        message = f"durable+django://{alias} needs Django: pip install django"
        raise ConfigurationError(message) from error
    try:
        wrapper = connections[alias]
    except ConnectionDoesNotExist:
        known = ", ".join(map(repr, connections))
        message = f"durable+django://{alias}: settings.DATABASES has no {alias!r}, it has {known}"
        raise ConfigurationError(message) from None
    if wrapper.vendor != "postgresql":
        message = (
            f"durable+django://{alias}: celery-durable needs Postgres, and {alias!r} is {wrapper.vendor}"
        )
        raise ConfigurationError(message)
    return wrapper
