"""Being a user of an embedded server: registered by a lock, starting a supervisor when there is none."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import sysconfig
import threading
import time
from contextlib import suppress
from pathlib import Path

from celery_durable.exceptions import EmbeddedPostgresError
from celery_durable.store.embedded.layout import Layout
from celery_durable.store.embedded.locks import closing_fd, is_held, try_hold, try_share, wait_until
from celery_durable.store.embedded.server import START_SECONDS

_REGISTER_SECONDS = 10.0
_STOP_SECONDS = 60.0
_LONGEST_LOG = 1_000_000  # bytes

# Open files that share the users' lock. A child inherits them, and with them its parent's registration: the
# server lives as long as either, and a child that ends takes nothing away.
_registrations: dict[Path, int] = {}
_one_at_a_time = threading.Lock()


def _after_fork() -> None:
    global _one_at_a_time  # noqa: PLW0603  (another thread of the parent may have held it)
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def ensure(directory: Path) -> str:
    """See `celery_durable.store.embedded.ensure_server`."""
    layout = Layout.of(directory)
    try:
        with _one_at_a_time:
            _register(layout)
            return _running(layout) or _start(layout)
    except OSError as error:
        message = f"The embedded Postgres in {layout.directory} cannot be used: {error}"
        raise EmbeddedPostgresError(message, directory=str(layout.directory)) from error


def release(directory: Path) -> None:
    """See `celery_durable.store.embedded.release_server`."""
    with _one_at_a_time:
        fd = _registrations.pop(directory.resolve(), None)
        if fd is not None:
            os.close(fd)  # and not unlocked: children that inherited it stay users


def status(layout: Layout) -> dict[str, object]:
    """Return what is known about the server of `layout`; it is not started for that."""
    url = layout.url(password=False)
    state = _state(layout)
    return {"running": state is not None, "directory": str(layout.directory), "url": url, **(state or {})}


def stop(layout: Layout) -> bool:
    """Stop the server of `layout`, also while it has users; return whether it was running.

    Raises `EmbeddedPostgresError` if it does not end.
    """
    if not _supervised(layout):
        return False
    layout.write(layout.stop_request, "")
    if not wait_until(lambda: not _supervised(layout), _STOP_SECONDS):
        message = f"The supervisor of {layout.directory} does not answer; see {layout.supervisor_log}"
        raise EmbeddedPostgresError(message, directory=str(layout.directory))
    return True


def _register(layout: Layout) -> None:
    if layout.directory in _registrations:
        # A daemon closes what it inherited, somebody may have removed the directory: is it still our lock?
        with suppress(OSError):
            if os.path.samestat(os.fstat(_registrations[layout.directory]), layout.users_lock.stat()):
                return
        del _registrations[layout.directory]
    fd = layout.open(layout.users_lock)
    if not wait_until(lambda: try_share(fd), _REGISTER_SECONDS):
        os.close(fd)
        message = f"The supervisor of {layout.directory} does not answer; see {layout.supervisor_log}"
        raise EmbeddedPostgresError(message, directory=str(layout.directory))
    _registrations[layout.directory] = fd


def _supervised(layout: Layout) -> bool:
    return _is_held(layout, layout.supervisor_lock)


def _is_held(layout: Layout, lock: Path) -> bool:
    with closing_fd(layout.open(lock)) as fd:
        return is_held(fd)


def _state(layout: Layout) -> dict[str, object] | None:
    """Return what the supervisor says of the server, `None` unless that runs."""
    # In this order: a state read after its writer was seen alive is that supervisor's or a later one's. Of a
    # Postgres that crashed, the lock tells before its supervisor can.
    if not _supervised(layout) or not _is_held(layout, layout.postmaster_lock):
        return None
    return layout.read_state()


def _running(layout: Layout) -> str | None:
    return None if _state(layout) is None else layout.url()


def _start(layout: Layout) -> str:
    with closing_fd(layout.open(layout.start_lock)) as fd:
        if not wait_until(lambda: try_hold(fd), START_SECONDS):
            raise _no_answer(layout, "another process has been starting it")
        # Somebody else was faster, or an earlier supervisor is busy stopping or restarting its server.
        if not wait_until(lambda: not _supervised(layout) or _state(layout) is not None, START_SECONDS):
            raise _no_answer(layout, "its supervisor has been starting or stopping it")
        url = _running(layout)
        if url is None:
            # What a killed supervisor left behind must not be taken for its successor's.
            layout.state.unlink(missing_ok=True)
            _launch(layout)
            url = _running(layout)
    if url is None:
        raise EmbeddedPostgresError(f"The embedded Postgres stopped at once; see {layout.supervisor_log}")
    return url


def _launch(layout: Layout) -> None:
    """Start a supervisor that outlives this process, and wait until it says how it went."""
    flags = os.O_WRONLY | os.O_APPEND
    if layout.supervisor_log.exists() and layout.supervisor_log.stat().st_size > _LONGEST_LOG:
        flags |= os.O_TRUNC
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "celery_durable.store.embedded.supervisor", str(layout.directory)]
    with closing_fd(read_end), closing_fd(layout.open(layout.supervisor_log, flags)) as log:
        with closing_fd(write_end):
            process = subprocess.Popen(  # noqa: S603  (a command of our own)
                [*command, f"--report-fd={write_end}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                pass_fds=(write_end,),
                start_new_session=True,
            )
        process.wait(START_SECONDS)
        answer = _read_line(read_end, START_SECONDS)
    if not answer:
        raise _no_answer(layout, "its supervisor ended or was silent")
    error = json.loads(answer)["error"]
    if error is not None:
        raise EmbeddedPostgresError(error, directory=str(layout.directory), log=str(layout.log))


def _environment() -> dict[str, str]:
    # The supervisor imports the same package, also from a checkout that is on our path only by chance.
    root = str(Path(__file__).resolve().parents[3])
    if root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _read_line(fd: int, seconds: float) -> bytes:
    """Read up to the end of a line, of the file, or of patience."""
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return b""
        found = os.read(fd, 4096)
        if not found:
            return b""
        line += found
    return line


def _no_answer(layout: Layout, what: str) -> EmbeddedPostgresError:
    lines = (
        layout.supervisor_log.read_text("utf-8", "replace").splitlines()
        if layout.supervisor_log.exists()
        else []
    )
    tail = "\n".join(lines[-12:])
    message = (
        f"The embedded Postgres did not start: {what}. The last lines of {layout.supervisor_log}:\n{tail}"
    )
    return EmbeddedPostgresError(message, directory=str(layout.directory), log=str(layout.supervisor_log))
