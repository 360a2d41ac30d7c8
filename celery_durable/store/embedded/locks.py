"""Locks on files, which the kernel gives up the moment their holder dies: no pid has to be believed.

Two kinds are used on purpose:

- A *held* lock (`fcntl.lockf`) belongs to one process and is not inherited. "The supervisor lives" is one,
  and so is "somebody is starting it": a child forked at that moment must not keep either.
- A *shared* lock (`fcntl.flock`) belongs to an open file and lives on in every child that inherited it.
  "Somebody uses the server" is one (the children of a prefork worker keep the server), and so is "a process
  of the server still runs" (it ends with the last backend).
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL = 0.01  # seconds between two looks at something that nobody announces


def wait_until(condition: Callable[[], bool], seconds: float, *, poll: float = POLL) -> bool:
    """Return whether `condition()` became true in time.

    Arguments:
        condition: looked at until it is true.
        seconds: how long at most.
        poll: seconds between two looks.
    """
    deadline = time.monotonic() + seconds
    never = threading.Event()
    while not condition():
        if time.monotonic() >= deadline:
            return False
        never.wait(poll)
    return True


def try_hold(fd: int) -> bool:
    """Try to make this process the holder of the lock on the file open as `fd`."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_held(fd: int) -> bool:
    """Return whether another process holds the lock on the file open as `fd`."""
    if not try_hold(fd):
        return True
    fcntl.lockf(fd, fcntl.LOCK_UN)
    return False


def try_share(fd: int) -> bool:
    """Try to be one of those who share the lock on the file open as `fd`."""
    return _flock(fd, fcntl.LOCK_SH)


def try_own(fd: int) -> bool:
    """Try to get the shared lock on the file open as `fd` for this open file alone."""
    return _flock(fd, fcntl.LOCK_EX)


def unlock(fd: int) -> None:
    """Give up the shared lock on the file open as `fd`, also for children that inherited it."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def _flock(fd: int, operation: int) -> bool:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close `fd` at the end."""
    try:
        yield fd
    finally:
        os.close(fd)
