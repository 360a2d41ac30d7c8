"""The owner of one embedded server: `python -m celery_durable.store.embedded.supervisor DIRECTORY`.

It starts Postgres as its child, starts it again if it crashes, and stops it some seconds after its last user
is gone. Its life is a lock that it holds. However it is killed, on Linux Postgres goes with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.account import choose_account
from celery_durable.store.embedded.binaries import find_binaries
from celery_durable.store.embedded.layout import Layout
from celery_durable.store.embedded.locks import closing_fd, try_hold, try_own, unlock, wait_until
from celery_durable.store.embedded.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

IDLE_VARIABLE = "CELERY_DURABLE_EMBEDDED_IDLE"
_TICK = 0.2  # seconds between two looks for users
_LOCK_SECONDS = 2.0  # others touch the lock for an instant when they ask whether we live
_QUICK_CRASHES = 5
_QUICK = 10.0  # seconds


def idle_seconds() -> float:
    """Return how long a server without users runs on, in seconds."""
    return float(os.environ.get(IDLE_VARIABLE) or 5.0)


class Supervisor:
    """Owns the server of one directory.

    Arguments:
        layout: the directory's files.
        idle: seconds that the server runs on without users.
    """

    def __init__(self, layout: Layout, idle: float) -> None:
        self._layout, self._idle = layout, idle
        self._told_to_stop = False
        self._wake_up, wake_up = os.pipe()
        for fd in (self._wake_up, wake_up):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a crash of Postgres ends the wait
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_signal(self, *_: object) -> None:
        self._told_to_stop = True

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until told to stop or no longer needed.

        Arguments:
            on_ready: called when the server takes connections.

        Raises `EmbeddedPostgresError` if the server does not start, or crashes again and again.
        """
        layout = self._layout
        own = layout.open(layout.supervisor_lock)  # held until this process ends
        if not wait_until(lambda: try_hold(own), _LOCK_SECONDS):
            raise EmbeddedPostgresError(
                f"Another supervisor owns {layout.directory}", directory=str(layout.directory)
            )
        layout.state.unlink(missing_ok=True)
        layout.stop_request.unlink(missing_ok=True)
        account = choose_account(layout)
        binaries = find_binaries().reachable(account)
        server = Server(layout, binaries, account)
        try:
            self._serve(server, binaries.version(), on_ready)
        finally:
            layout.state.unlink(missing_ok=True)
            server.stop()
            layout.stop_request.unlink(missing_ok=True)

    def _serve(self, server: Server, version: str, on_ready: Callable[[], None]) -> None:
        crashes = 0
        while True:
            server.start()
            started = time.monotonic()
            state = {"version": version, "supervisor": os.getpid(), "postgres": server.pid}
            self._layout.write(self._layout.state, json.dumps(state))
            logger.info("Postgres %s takes connections (pid %d)", version, server.pid)
            on_ready()
            if not self._crashed(server):
                return
            self._layout.state.unlink(missing_ok=True)
            crashes = crashes + 1 if time.monotonic() - started < _QUICK else 1
            logger.error("Postgres ended by itself; see %s", self._layout.log)
            if crashes >= _QUICK_CRASHES or not self._layout.data.exists():
                raise EmbeddedPostgresError(f"The embedded Postgres crashes; see {self._layout.log}")

    def _crashed(self, server: Server) -> bool:
        """Watch over `server` until it crashed, or until it is time to stop it."""
        idle_since: float | None = None
        with closing_fd(self._layout.open(self._layout.users_lock)) as users:
            while not server.ended():
                if self._told_to_stop or self._layout.stop_request.exists():
                    logger.info("stopping: told to")
                    return False
                if not try_own(users):
                    idle_since = None
                elif self._stays_idle(idle_since := idle_since or time.monotonic()):
                    unlock(users)
                else:
                    return False
                self._wait()
        return True

    def _stays_idle(self, since: float) -> bool:
        """Return whether to go on without users, unless that has lasted long enough."""
        if time.monotonic() - since < self._idle:
            return True
        # While we own their lock nobody can become a user; without this file nobody takes the server for
        # running afterwards.
        self._layout.state.unlink(missing_ok=True)
        logger.info("stopping: the last user left %.0f s ago", self._idle)
        return False

    def _wait(self) -> None:
        if select.select([self._wake_up], [], [], _TICK)[0]:
            os.read(self._wake_up, 512)


class _Report:
    """Tells whoever started the supervisor how it went, once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, error: str | None = None) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.write(fd, json.dumps({"error": error}).encode() + b"\n")
        except BrokenPipeError:
            logger.info("whoever started this supervisor is gone")
        os.close(fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """Own the server of a directory; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m celery_durable.store.embedded.supervisor")
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--report-fd", type=int, help="detach, and write one line of JSON here: started, or why not"
    )
    options = parser.parse_args(arguments)
    if options.report_fd is not None and os.fork():
        os._exit(0)  # whoever started us need not collect us
    os.umask(0o077)
    os.chdir("/")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(message)s")

    report = _Report(options.report_fd)
    try:
        Supervisor(Layout.of(options.directory), idle_seconds()).run(on_ready=report)
    except Exception as error:
        logger.exception("the embedded Postgres cannot be run")
        report(str(error) if isinstance(error, EmbeddedPostgresError) else repr(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
