"""Queues made of files, for processes that may be killed at any moment.

Everything here is one rename or one unlink, which the kernel does completely or not at all: a reader never
sees half a message, two readers never get the same one, and there is no lock that a dead process could leave.

    queues/<queue>/<priority>-<time>-<random>.msg     a message
    queues/<queue>/expires                            seconds without a reader after which the queue goes
    exchanges/<exchange>/<queue>~<digest>.json        a binding
    incoming/                                         what is being written
    unreadable/                                       what was put aside, for people
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
import shutil
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

_MESSAGE = ".msg"
_LOOK_AHEAD = 64  # names remembered from one listing of a long queue
_ABANDONED = 3600.0  # seconds after which a file being written has lost its writer
_LONGEST_NAME = 150  # characters; file names end at 255


class Binding(NamedTuple):
    """What kombu keeps per queue bound to an exchange."""

    routing_key: str
    pattern: str
    queue: str


class Spool:
    """The queues below one directory. Not to be shared by threads.

    Arguments:
        root: created when the first message or binding is stored.
    """

    def __init__(self, root: Path) -> None:
        self._queues, self._exchanges = root / "queues", root / "exchanges"
        self._incoming, self._unreadable = root / "incoming", root / "unreadable"
        self._seen: dict[str, deque[str]] = {}
        self._left: set[str] = set()
        self._touched: dict[str, float] = {}
        self._last = 0

    def put(self, queue: str, message: bytes, *, urgency: int = 0) -> bool:
        """Append a message to `queue`; return whether anybody may still read it.

        Arguments:
            queue: created when missing.
            message: what `get` will hand to its decoder.
            urgency: 0 is read first, 9 last.
        """
        if self._is_expired(queue):
            self.delete(queue)
            return False
        # Names sort by age, also where the clock stands still or goes back while one process writes.
        self._last = max(self._last + 1, time.time_ns())
        name = f"{urgency}-{self._last:020d}-{uuid4().hex[:12]}{_MESSAGE}"
        self._store(self._queues / _name(queue) / name, message)
        return True

    def get(self, queue: str, decode: Callable[[bytes], Any]) -> Any | None:
        """Remove the first message of `queue` and return it decoded, or `None` if there is none.

        Arguments:
            queue: need not exist.
            decode: raises `ValueError` for what is no message; that file is put aside with a warning.
        """
        folder = self._queues / _name(queue)
        for name in self._names(queue, folder):
            path = folder / name
            try:
                message = decode(path.read_bytes())
                path.unlink()  # of all who read it, the one whose unlink succeeds has it
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._put_aside(path, error)
            else:
                return message
        return None

    def size(self, queue: str) -> int:
        """Return the number of messages in `queue`."""
        return len(_messages(self._queues / _name(queue)))

    def exists(self, queue: str) -> bool:
        """Return whether `queue` was declared."""
        return (self._queues / _name(queue)).is_dir()

    def purge(self, queue: str) -> int:
        """Remove the messages of `queue`; return how many."""
        folder, removed = self._queues / _name(queue), 0
        for name in _messages(folder):
            with suppress(FileNotFoundError):
                (folder / name).unlink()
                removed += 1
        return removed

    def declare(self, queue: str, expires: float | None = None) -> None:
        """Create `queue`.

        Arguments:
            queue: left as it is when it exists.
            expires: seconds without a reader after which the queue goes, `None` for never.
        """
        folder = self._queues / _name(queue)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if expires is not None:
            self._store(folder / "expires", str(expires).encode())

    def touch(self, queue: str) -> bool:
        """Say that `queue` has a reader, which keeps it; return `False` if it is gone nevertheless.

        Arguments:
            queue: one that was declared to expire.
        """
        if time.monotonic() - self._touched.get(queue, -1.0) < 1.0:
            return True
        self._touched[queue] = time.monotonic()
        try:
            os.utime(self._queues / _name(queue) / "expires")
        except FileNotFoundError:
            return False
        return True

    def delete(self, queue: str) -> None:
        """Remove `queue`, its messages and its bindings."""
        for path in self._exchanges.glob(f"*/{_name(queue)}~*.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self._queues / _name(queue), ignore_errors=True)

    def bind(self, exchange: str, binding: Binding) -> None:
        """Let messages for `exchange` reach a queue."""
        self._store(self._binding(exchange, binding), json.dumps(binding).encode())

    def unbind(self, exchange: str, binding: Binding) -> None:
        """Undo `bind`."""
        self._binding(exchange, binding).unlink(missing_ok=True)

    def bindings(self, exchange: str) -> list[Binding]:
        """Return what is bound to `exchange`."""
        found = []
        for path in sorted((self._exchanges / _name(exchange)).glob("*.json")):
            try:
                found.append(Binding(*json.loads(path.read_bytes())))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError) as error:
                self._put_aside(path, error)
        return found

    def tidy(self) -> None:
        """Remove queues whose readers are gone, and what writers left when they were killed."""
        for marker in self._queues.glob("*/expires"):
            if _is_over(marker):
                shutil.rmtree(marker.parent, ignore_errors=True)
                for path in self._exchanges.glob(f"*/{marker.parent.name}~*.json"):
                    path.unlink(missing_ok=True)
        for path in self._incoming.glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _names(self, queue: str, folder: Path) -> Iterator[str]:
        """The queue's messages in order: first those of the last listing, then those of a new one."""
        seen = self._seen.pop(queue, None)
        while seen or (seen := self._list(folder)):
            name = seen.popleft()
            self._seen[queue] = seen
            yield name

    def _list(self, folder: Path) -> deque[str]:
        names = (name for name in _messages(folder) if name not in self._left)
        return deque(heapq.nsmallest(_LOOK_AHEAD, names))

    def _is_expired(self, queue: str) -> bool:
        return _is_over(self._queues / _name(queue) / "expires")

    def _binding(self, exchange: str, binding: Binding) -> Path:
        digest = hashlib.sha256(json.dumps(binding).encode()).hexdigest()[:16]
        return self._exchanges / _name(exchange) / f"{_name(binding.queue)}~{digest}.json"

    def _store(self, path: Path, content: bytes) -> None:
        new = self._incoming / uuid4().hex
        try:
            self._write(new, path, content)
        except FileNotFoundError:  # the first one here, or somebody removed the directory
            for folder in (self._incoming, path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(new, path, content)

    @staticmethod
    def _write(new: Path, path: Path, content: bytes) -> None:
        try:
            new.write_bytes(content)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def _put_aside(self, path: Path, error: Exception) -> None:
        target = self._unreadable / path.name
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.replace(target)
        except FileNotFoundError:
            return  # another reader was faster
        except OSError:
            self._left.add(path.name)
            target = path
        logger.warning("Not a message, left in %s: %s", target, error)


def _name(name: str) -> str:
    """Return a file name for a name chosen by others, which may hold any character."""
    quoted = "q-" + quote(name, safe="@")
    if len(quoted) <= _LONGEST_NAME:
        return quoted
    return f"{quoted[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


def _messages(folder: Path) -> list[str]:
    try:
        return [
            name
            for name in os.listdir(folder)  # noqa: PTH208  (names are all it needs, of many)
            if name.endswith(_MESSAGE)
        ]
    except FileNotFoundError:
        return []


def _is_over(marker: Path) -> bool:
    try:
        return time.time() - marker.stat().st_mtime > float(marker.read_bytes())
    except (FileNotFoundError, ValueError):
        return False
