"""As whom Postgres runs: it refuses to be root, and initdb wants a user that has a name."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import EmbeddedPostgresError

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

    from celery_durable.store.embedded.layout import Layout

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
# Loaded before any fork: between fork and exec nothing may be imported or looked up.
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Account:
    """Who runs the server's processes.

    Arguments:
        uid: the user to become, `None` to stay who we are.
        gid: the group to become.
    """

    uid: int | None = None
    gid: int | None = None

    def path(self, path: Path) -> str:
        """Return how a process of this account that was started in `path` names it.

        Root's projects often lie below directories that nobody else may enter. A process may always name the
        directory it was started in, so nothing above it has to be opened to the world.
        """
        return "/proc/self/cwd" if self.uid is not None and sys.platform == "linux" else str(path)

    def own(self, path: Path | int) -> None:
        """Make this account the owner of a file.

        Arguments:
            path: or the descriptor of an open file.
        """
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def popen_options(
        self, *, death_signal: signal.Signals, named: bool = False, hold: int | None = None
    ) -> dict[str, Any]:
        """Return the arguments for `subprocess` that start a process as this account.

        Arguments:
            death_signal: what the process gets when this one dies (Linux only).
            named: whether the program insists on a user that has a name.
            hold: a descriptor whose lock the process is to hold until it ends; pass it to the process, too.
        """
        options: dict[str, Any] = {}
        if self.uid is not None:
            options = {"user": self.uid, "group": self.gid, "extra_groups": []}
        nameless = named and not _has_name(os.geteuid() if self.uid is None else self.uid)
        return {**options, "preexec_fn": _before_exec(death_signal, borrow_name=nameless, hold=hold)}

    def can_use(self, paths: Sequence[Path]) -> bool:
        """Return whether this account may read and enter (or run) all of `paths`."""
        if self.uid is None or self.gid is None:
            return all(os.access(path, os.R_OK | os.X_OK) for path in paths)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setgid(self.gid)
                os.setuid(self.uid)
                status = 0 if all(os.access(path, os.R_OK | os.X_OK) for path in paths) else 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def choose_account(layout: Layout) -> Account:
    """Return who runs the server of `layout`.

    Without privileges that is the user itself. Root lets the owner of the data do it, else the owner of the
    directory, else `nobody`.

    Raises `EmbeddedPostgresError` if there is no such user, or the data belong to somebody else.
    """
    owner = layout.data.stat().st_uid if layout.data.exists() else None
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            message = (
                f"The data in {layout.data} belong to user id {owner}: root started the server before. Go on "
                f"as root, or set CELERY_DURABLE_DIR to another directory"
            )
            raise EmbeddedPostgresError(message, directory=str(layout.directory))
        return Account()
    directory = layout.directory.stat()
    if owner:
        return Account(owner, layout.data.stat().st_gid)
    if directory.st_uid and _has_name(directory.st_uid):
        return Account(directory.st_uid, directory.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        message = "Postgres refuses to run as root and there is no user `nobody` to run it: use another user"
        raise EmbeddedPostgresError(message, directory=str(layout.directory)) from None
    return Account(nobody.pw_uid, nobody.pw_gid)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _before_exec(death_signal: signal.Signals, *, borrow_name: bool, hold: int | None) -> Callable[[], None]:
    parent = os.getpid()
    linux = sys.platform == "linux"

    def prepare() -> None:
        if borrow_name and linux:
            _borrow_name()
        if linux:
            # After the change of user, which clears it.
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:  # it died before it could be asked for
                os._exit(1)
        if hold is not None:
            # Outlives the exec. Waits: whoever asks about the lock takes it for an instant.
            fcntl.lockf(hold, fcntl.LOCK_EX)

    return prepare


def _borrow_name() -> None:
    """Appear as `nobody` in a user namespace of our own: initdb refuses a user id without a name.

    Containers often run as such a user (`docker run --user 12345`). Files still belong to the real user.
    Where namespaces are not allowed, initdb goes on to say what is missing.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _LIBC.unshare(_CLONE_NEWUSER) == 0:
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"65534 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"65534 {gid} 1", encoding="ascii")
