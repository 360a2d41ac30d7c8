"""What really ran: a file that every process appends to, and gates at which a step waits for the test."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One line: what happened, to which step of which run, in which process, when (one clock per machine)."""

    event: str
    name: str
    run: str | None = None
    pid: int = 0
    at: float = 0.0
    detail: Any = None


class Ledger:
    """Side effects, in the order they happened. One `write` a line: a kill loses none or all of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, name: str, *, run: str | None = None, detail: Any = None) -> None:
        entry = Entry(event, name, run, os.getpid(), time.monotonic(), detail)
        line = json.dumps(entry.__dict__).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    @contextmanager
    def recorded(self, name: str, run: str | None = None, detail: Any = None) -> Iterator[None]:
        self.write("start", name, run=run, detail=detail)
        yield
        self.write("end", name, run=run, detail=detail)

    def entries(
        self, event: str | None = None, name: str | None = None, run: str | None = None
    ) -> list[Entry]:
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")  # a line may be read while it is written
        every = [Entry(**json.loads(line)) for line in whole.splitlines()]
        return [
            entry
            for entry in every
            if event in (None, entry.event) and name in (None, entry.name) and run in (None, entry.run)
        ]

    def count(self, event: str | None = None, name: str | None = None, run: str | None = None) -> int:
        return len(self.entries(event, name, run))

    def names(self, event: str = "start", run: str | None = None) -> list[str]:
        return [entry.name for entry in self.entries(event, run=run)]

    def wait_for(
        self,
        event: str,
        name: str | None = None,
        run: str | None = None,
        *,
        times: int = 1,
        timeout: float = 20.0,
    ) -> Entry:
        """Return the `times`-th entry of its kind, as soon as it is there."""

        def found() -> list[Entry]:
            entries = self.entries(event, name, run)
            return entries if len(entries) >= times else []

        def missing() -> str:
            return (
                f"{event} {name} #{times} in the ledger {[(e.event, e.name, e.pid) for e in self.entries()]}"
            )

        return eventually(found, timeout=timeout, what=missing)[times - 1]


class Gates:
    """Steps wait at a closed gate: one that a test has closed, for everybody or for one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self, name: str, pid: int | None = None) -> None:
        self._folder.mkdir(exist_ok=True)
        self._bar(name, pid).touch()

    def open(self, name: str, pid: int | None = None) -> None:
        self._bar(name, pid).unlink()

    def closed(self, name: str) -> bool:
        """Say whether a gate is closed for everybody."""
        return self._bar(name, None).exists()

    def pass_through(self, name: str, timeout: float = 120.0) -> None:
        for bar in (self._bar(name, None), self._bar(name, os.getpid())):
            if bar.exists():
                eventually(lambda bar=bar: not bar.exists(), timeout=timeout, what=f"{bar} to open")

    def _bar(self, name: str, pid: int | None) -> Path:
        return self._folder / (name if pid is None else f"{name}@{pid}")
