"""`python -m celery_durable.store.embedded status|stop [DIRECTORY]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.client import status, stop
from celery_durable.store.embedded.home import default_directory
from celery_durable.store.embedded.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOT_RUNNING = 3  # what init scripts return for `status`


def main(arguments: Sequence[str] | None = None) -> int:
    """Show or stop the embedded server of a directory; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m celery_durable.store.embedded", description="The embedded Postgres of a project."
    )
    parser.add_argument("action", choices=("status", "stop"))
    parser.add_argument("directory", nargs="?", type=Path, default=default_directory())
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        sys.stderr.write(f"There is no embedded Postgres in {options.directory}\n")
        return _NOT_RUNNING
    try:
        layout = Layout.of(options.directory)
        return _stop(layout) if options.action == "stop" else _status(layout)
    except EmbeddedPostgresError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _status(layout: Layout) -> int:
    found = status(layout)
    sys.stdout.writelines(f"{name}: {value}\n" for name, value in found.items())
    return 0 if found["running"] else _NOT_RUNNING


def _stop(layout: Layout) -> int:
    sys.stdout.write("stopped\n" if stop(layout) else "it was not running\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
