"""One running Postgres, the direct child of the supervisor."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.cluster import failed, prepare_data, server_environment
from celery_durable.store.embedded.layout import SOCKET_NAME
from celery_durable.store.embedded.locks import closing_fd, try_own, wait_until

if TYPE_CHECKING:
    from celery_durable.store.embedded.account import Account
    from celery_durable.store.embedded.binaries import Binaries
    from celery_durable.store.embedded.layout import Layout

_LINUX = platform.system() == "Linux"
START_SECONDS = 120.0  # crash recovery after a busy hour on a slow disk takes its time
_LEFTOVER_SECONDS = 15.0  # Postgres kills its own frozen children after 5
_SETTINGS = (
    "listen_addresses=",  # a socket in the private data directory, nothing on the network
    "unix_socket_directories=.",
    "unix_socket_permissions=0700",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "max_connections=200",
    "log_destination=stderr",
    "logging_collector=off",
    "log_checkpoints=off",
    "jit=off",
)
_LONGEST_LOG = 10_000_000  # bytes


class Server:
    """The server process of one directory.

    Arguments:
        layout: the directory's files.
        binaries: the Postgres to run.
        account: who runs it.
    """

    def __init__(self, layout: Layout, binaries: Binaries, account: Account) -> None:
        self._layout, self._binaries, self._account = layout, binaries, account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the postmaster, 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the server, after making its data if necessary, and wait until it takes connections.

        Raises `EmbeddedPostgresError` with the last lines of the log if it does not.
        """
        layout = self._layout
        # Whoever inherits this descriptor is a process of the server; the lock is free when none is left.
        with (
            closing_fd(layout.open(layout.server_lock)) as server_lock,
            closing_fd(layout.open(layout.postmaster_lock)) as postmaster_lock,
        ):
            wait_for_predecessor(layout, server_lock)
            begin = _rotate(layout)
            prepare_data(layout, self._binaries, self._account, server_lock)
            _remove_stale_lock_files(layout)
            self._process = self._spawn(server_lock, postmaster_lock)
        if not wait_until(lambda: self.ended() or self._is_ready(), START_SECONDS):
            self.stop()
            raise failed(layout, f"it was not ready after {START_SECONDS:.0f} s", begin)
        if self.ended():
            raise failed(layout, f"it ended with status {self._process.returncode}", begin)

    def _spawn(self, server_lock: int, postmaster_lock: int) -> subprocess.Popen[bytes]:
        layout = self._layout
        settings = [argument for setting in _SETTINGS for argument in ("-c", setting)]
        with open(layout.open(layout.log, os.O_WRONLY | os.O_APPEND), "ab") as log:  # noqa: PTH123
            # If the supervisor is killed, Postgres gets SIGQUIT and no polite shutdown: that ends in bounded
            # time even when a backend is frozen, and the next start replays the log.
            return subprocess.Popen(  # noqa: S603  (a command of our own)
                [str(self._binaries.postgres), "-D", self._account.path(layout.data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=layout.data,
                env=server_environment(),
                pass_fds=(server_lock, postmaster_lock),
                **self._account.popen_options(death_signal=signal.SIGQUIT, hold=postmaster_lock),
            )

    def ended(self) -> bool:
        """Return whether the server is not running."""
        return self._process is None or self._process.poll() is not None

    def _is_ready(self) -> bool:
        lines = _pid_file(self._layout)
        ready_line = 7  # what pg_ctl looks at, too
        return lines[:1] == [str(self.pid)] and lines[ready_line:] == ["ready"]

    def stop(self) -> None:
        """End the server: rolling back what is open, at the latest by force."""
        patience = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
        for number, seconds in patience:
            if self._process is None or self._process.poll() is not None:
                return
            self._process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)


def wait_for_predecessor(layout: Layout, server_lock: int) -> None:
    """Wait until no process of an earlier server of `layout` is left.

    Arguments:
        layout: the directory's files.
        server_lock: a new descriptor of its server lock, which owns the lock afterwards.

    Raises `EmbeddedPostgresError` if one does not end.
    """
    if wait_until(lambda: try_own(server_lock), _LEFTOVER_SECONDS if _LINUX else 1.0):
        return
    # Where the kernel did not tell Postgres that its supervisor died, we do.
    pid = running_postmaster(layout)
    if pid is not None:
        os.kill(pid, signal.SIGINT)
    if not wait_until(lambda: try_own(server_lock), _LEFTOVER_SECONDS):
        message = f"An earlier server in {layout.directory} does not end: find its processes and kill them"
        raise EmbeddedPostgresError(message, directory=str(layout.directory))


def running_postmaster(layout: Layout) -> int | None:
    """Return the process id in Postgres' pid file, if that process really is a server of this directory.

    After a crash the number may have been given to any other process.
    """
    lines = _pid_file(layout)
    if not lines or not lines[0].isdigit():
        return None
    pid = int(lines[0])
    if _LINUX:
        with suppress(OSError):
            return pid if Path(f"/proc/{pid}/cwd").readlink() == layout.data else None
        return None
    command = ["ps", "-p", str(pid), "-o", "command="]
    found = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    return pid if f"-D {layout.data}" in found.stdout else None


def _remove_stale_lock_files(layout: Layout) -> None:
    # Postgres itself refuses to start while *any* process of this user, or an uncollected zombie, has the old
    # number. We know better: nobody holds the server lock, so only a server started by hand can be there.
    pid = running_postmaster(layout)
    if pid is not None:
        message = (
            f"A Postgres that was not started by celery-durable (pid {pid}) uses {layout.data}: stop it first"
        )
        raise EmbeddedPostgresError(message, directory=str(layout.directory), pid=pid)
    for name in ("postmaster.pid", f"{SOCKET_NAME}.lock"):
        (layout.data / name).unlink(missing_ok=True)


def _pid_file(layout: Layout) -> list[str]:
    try:
        return [line.strip() for line in (layout.data / "postmaster.pid").read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return []


def _rotate(layout: Layout) -> int:
    """Keep the log from growing for ever; return where this start's part begins."""
    with closing_fd(layout.open(layout.log)) as fd:
        size = os.fstat(fd).st_size
    if size < _LONGEST_LOG:
        return size
    layout.log.replace(layout.log.with_name(f"{layout.log.name}.1"))
    return 0
