"""The files of one embedded server, and who may read them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.home import make_private

DATABASE = USER = "durable"
PORT = 5432  # part of the socket's name, no TCP port
SOCKET_NAME = f".s.PGSQL.{PORT}"
_LONGEST_SOCKET_PATH = 103  # bytes: what macOS and Linux (107) both allow


@dataclass(frozen=True)
class Layout:
    """Paths below one server directory.

    Arguments:
        directory: absolute, without symbolic links.
    """

    directory: Path

    @classmethod
    def of(cls, directory: Path) -> Layout:
        """Return the layout of `directory`, which is created when missing.

        Raises `EmbeddedPostgresError` if it cannot be created or is somebody else's.
        """
        try:
            make_private(directory.absolute())
            found = cls(directory.resolve(strict=True))
            owner = found.directory.stat().st_uid
        except OSError as error:
            message = f"The directory {directory} of the embedded Postgres cannot be used: {error}"
            raise EmbeddedPostgresError(message, directory=str(directory)) from error
        if os.geteuid() not in (0, owner):
            message = (
                f"The embedded Postgres in {directory} belongs to user id {owner}, this process runs as "
                f"{os.geteuid()}: run all processes of a project as one user, or set CELERY_DURABLE_DIR"
            )
            raise EmbeddedPostgresError(message, directory=str(directory))
        return found

    @cached_property
    def data(self) -> Path:
        """The data directory of Postgres; its socket is there too."""
        return self.directory / "data"

    @cached_property
    def log(self) -> Path:
        """What Postgres and initdb print."""
        return self.directory / "postgres.log"

    @cached_property
    def supervisor_log(self) -> Path:
        """What the supervisor prints."""
        return self.directory / "supervisor.log"

    @cached_property
    def password(self) -> Path:
        """The password of the role `durable`."""
        return self.directory / "password"

    @cached_property
    def state(self) -> Path:
        """Present from when the server took connections: its version, and pids for people."""
        return self.directory / "server.json"

    @cached_property
    def stop_request(self) -> Path:
        """Created to ask the supervisor to stop; a file needs no pid and no proof of whose it is."""
        return self.directory / "stop"

    @cached_property
    def start_lock(self) -> Path:
        """Held by the process that starts a supervisor."""
        return self.directory / "start.lock"

    @cached_property
    def supervisor_lock(self) -> Path:
        """Held by the living supervisor."""
        return self.directory / "supervisor.lock"

    @cached_property
    def users_lock(self) -> Path:
        """Shared by everybody who uses the server."""
        return self.directory / "users.lock"

    @cached_property
    def server_lock(self) -> Path:
        """Shared by all processes of the server, so that it is free only when the last one is gone."""
        return self.directory / "server.lock"

    @cached_property
    def postmaster_lock(self) -> Path:
        """Held by the main process of the server, not by its backends: free the moment it dies."""
        return self.directory / "postmaster.lock"

    def open(self, path: Path, flags: int = os.O_RDWR) -> int:
        """Open one of these files, private to the directory's owner; return its descriptor.

        Arguments:
            path: created when missing.
            flags: as for `os.open`.
        """
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        self._give(fd)
        return fd

    def write(self, path: Path, text: str) -> None:
        """Replace one of these files in one go, private to the directory's owner."""
        new = path.with_name(f".{path.name}.{os.getpid()}")
        with open(self.open(new, os.O_WRONLY | os.O_TRUNC), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def _give(self, fd: int) -> None:
        # Root works on a directory of somebody else: that user must be able to go on without root.
        if os.geteuid() == 0:
            owner = self.directory.stat()
            if os.fstat(fd).st_uid != owner.st_uid:
                os.fchown(fd, owner.st_uid, owner.st_gid)

    def read_state(self) -> dict[str, Any] | None:
        """Return what the supervisor wrote once its server took connections, `None` while there is none."""
        try:
            found = json.loads(self.state.read_text("utf-8"))
        except FileNotFoundError:
            return None
        return dict(found)

    def url(self, *, password: bool = True) -> str:
        """Return the URL of the server, for libpq.

        Arguments:
            password: whether to put the password in; without it the URL can be shown.

        Raises `EmbeddedPostgresError` if the password file is gone.
        """
        try:
            secret = self.password.read_text("ascii").strip() if password else ""
        except FileNotFoundError:
            message = (
                f"{self.password} is missing: nobody can log in to the embedded Postgres without it. "
                f"Bring it back, or remove {self.data} to start with an empty database"
            )
            raise EmbeddedPostgresError(message, directory=str(self.directory)) from None
        user = f"{USER}:{secret}" if password else USER
        host = quote(str(self.socket_directory()), safe="/")
        return f"postgresql://{user}@/{DATABASE}?host={host}&port={PORT}"

    def socket_directory(self) -> Path:
        """Return a path to the server's socket directory that fits into a socket address."""
        if len(os.fsencode(self.data / SOCKET_NAME)) <= _LONGEST_SOCKET_PATH:
            return self.data
        link = _private_temporary_directory() / hashlib.sha256(os.fsencode(self.data)).hexdigest()[:12]
        if not link.is_symlink() or link.readlink() != self.data:
            new = link.with_name(f"{link.name}.{os.getpid()}")
            new.unlink(missing_ok=True)
            new.symlink_to(self.data)
            new.replace(link)
        return link


def _private_temporary_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"celery-durable-{os.geteuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        message = (
            f"{directory} is not a private directory of user id {os.geteuid()}: remove it, or set TMPDIR, or "
            f"give the embedded Postgres a shorter path with CELERY_DURABLE_DIR"
        )
        raise EmbeddedPostgresError(message, directory=str(directory))
    return directory
