"""Where a project keeps what runs without a server: `.durable` in its directory."""

from __future__ import annotations

import os
from pathlib import Path


def durable_home() -> Path:
    """Return the directory that the processes of one project share, as an absolute path.

    It is `.durable` below the current directory, or what the environment variable `CELERY_DURABLE_DIR` says.
    """
    return Path(os.environ.get("CELERY_DURABLE_DIR") or ".durable").absolute()


def default_directory() -> Path:
    """Return the directory of the project's embedded Postgres."""
    return durable_home() / "postgres"


def make_private(directory: Path) -> None:
    """Create `directory`, and those above it, readable by their owner alone.

    Arguments:
        directory: left as it is when it exists.
    """
    if directory.is_dir():
        return
    if directory.parent != directory:
        make_private(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory == durable_home():
        (directory / ".gitignore").write_text("*\n", encoding="ascii")
