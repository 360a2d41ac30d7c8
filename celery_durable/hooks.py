"""The identity of this worker, shared by its main process and its pool children, and the sign to drain."""

from __future__ import annotations

import os
import tempfile
import uuid
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = "CELERY_DURABLE_WORKER"  # noqa: S105  (the name of a variable)
_DRAIN = "CELERY_DURABLE_DRAIN"


def become_worker() -> uuid.UUID:
    """Give this process and the pool children it will start an identity of their own; return its token.

    It travels through the environment, which reaches forked and spawned children alike.
    """
    token = uuid.uuid4()
    os.environ[_TOKEN] = str(token)
    os.environ[_DRAIN] = str(Path(tempfile.gettempdir()) / f"celery-durable-{token}.drain")
    _sign.cache_clear()
    return token


@contextmanager
def worker_for_a_while() -> Iterator[uuid.UUID]:
    """Give this process the identity of a worker, and then the one it had before; yield the token."""
    before = {name: os.environ.get(name) for name in (_TOKEN, _DRAIN)}
    try:
        yield become_worker()
    finally:
        stop_draining()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        _sign.cache_clear()


def worker_token() -> uuid.UUID:
    """Return the token of the worker this process belongs to; outside of workers one that no row has."""
    return uuid.UUID(os.environ.get(_TOKEN, str(uuid.UUID(int=0))))


def start_draining() -> None:
    """Tell every process of this worker to leave its run at the next step boundary."""
    if path := os.environ.get(_DRAIN):
        Path(path).touch(mode=0o600)


@cache
def _sign() -> str | None:
    return os.environ.get(_DRAIN)


def draining() -> bool:
    """Return whether this worker is shutting down."""
    path = _sign()
    return path is not None and os.path.exists(path)  # noqa: PTH110  (at every step: the cheapest way)


def stop_draining() -> None:
    """Remove the sign."""
    if path := os.environ.get(_DRAIN):
        Path(path).unlink(missing_ok=True)
