"""The database a URL names.

`postgresql://…` as libpq takes it, `embedded://` for a server of our own, or `django://alias` for one of
Django's `settings.DATABASES`.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from celery_durable.exceptions import ConfigurationError

_POSTGRES = frozenset({"postgresql", "postgres"})
_EXAMPLE = (
    "durable+postgresql://user:password@host:5432/database, durable+embedded:// or, in a Django project, "
    "durable+django://default"
)


def strip_prefix(url: str) -> str:
    """Return `url` without the `durable+` that makes Celery pick this backend."""
    return url.removeprefix("durable+").removeprefix("durable:")


def conninfo(url: str) -> str:
    """Return what libpq connects to for a backend URL, starting the embedded server if that is meant.

    Raises `ConfigurationError` for a URL of another kind or an unknown alias, and `EmbeddedPostgresError`
    when the embedded server cannot be started.
    """
    url = strip_prefix(url)
    parts = urlsplit(url)
    dialect, _, driver = parts.scheme.partition("+")
    if dialect == "embedded":
        return _embedded(parts.netloc, parts.path)
    if alias := django_alias(url):
        from celery_durable.store import django_databases

        return django_databases.conninfo(alias)
    if dialect not in _POSTGRES:
        message = f"{redact(url)!r} is not a database URL of celery-durable: use {_EXAMPLE}"
        raise ConfigurationError(message, url=redact(url))
    if driver not in ("", "psycopg"):
        message = (
            f"{redact(url)!r} asks for the driver {driver!r}; celery-durable uses psycopg: use {_EXAMPLE}"
        )
        raise ConfigurationError(message, url=redact(url))
    # Not put together by urlunsplit: for a socket's URL (`postgresql:///app`) it leaves the slashes out.
    return "postgresql://" + url.partition("://")[2]


def _embedded(netloc: str, path: str) -> str:
    if netloc:
        message = (
            f"durable+embedded://{netloc}{path} names a host; use durable+embedded:// for the project's own "
            f"directory or durable+embedded:///an/absolute/path"
        )
        raise ConfigurationError(message)
    from celery_durable.store.embedded import ensure_server

    return ensure_server(Path(unquote(path)) if path.strip("/") else None)


def django_alias(url: str) -> str | None:
    """Return the alias that a `django://alias` URL names, None for any other URL."""
    parts = urlsplit(strip_prefix(url))
    return (parts.netloc or "default") if parts.scheme == "django" else None


def driver() -> str:
    """Return name and version of the database driver."""
    from psycopg import __version__

    return f"psycopg {__version__}"


def part_password(url: str) -> tuple[str, str | None]:
    """Return `url` without its password, and the password as it stands there, percent-encoded."""
    parts = urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    user, colon, password = who.partition(":")
    if not colon:
        return url, None
    # Put together by hand: urlunsplit leaves the slashes of a socket's URL out.
    start, _, rest = url.partition("://")
    return f"{start}://{user}{at}{host}{rest[len(parts.netloc) :]}", password


def with_password(url: str, password: str) -> str:
    """Return `url` with a percent-encoded password."""
    start, _, rest = url.partition("://")
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return f"{start}://{user}:{password}@{rest[len(user + at) :]}"


def redact(url: str) -> str:
    """Return `url` without its password."""
    bare, password = part_password(url)
    return url if password is None else with_password(bare, "**")
