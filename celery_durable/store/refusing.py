"""What Postgres refuses, in words for whoever asked."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from celery_durable.exceptions import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def plainly() -> Iterator[None]:
    """Turn what Postgres refuses into a `StoreError` that says it in one line."""
    try:
        yield
    except psycopg.Error as exc:
        line = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise StoreError(f"Postgres refused: {line}") from exc
