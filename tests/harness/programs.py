"""The programs of the how-to pages: copied, and run with a real worker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import current_app

from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


@contextmanager
def imported(name: str) -> Iterator[Any]:
    """Yield a program as a module; its app is the current one meanwhile."""
    proxy: Any = current_app
    before = proxy._get_current_object()
    spec = importlib.util.spec_from_file_location(name, HOW_TO / "programs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        before.set_current()


class Program:
    """A copy of a program, with its tables made.

    Arguments:
        name: of the file in `docs/how-to/programs`, without `.py`.
        folder: where it is copied to; it and its worker run there.
        backend: the URL of its store.
        broker: the URL of its broker, which must serve nobody else: programs use the queue `celery`.
    """

    def __init__(self, name: str, folder: Path, *, backend: str, broker: str) -> None:
        self._name, self._folder = name, folder
        self._environment = {**os.environ, "PYTHONPATH": "", "BACKEND": backend, "BROKER": broker}
        shutil.copy(HOW_TO / "programs" / f"{name}.py", folder)
        subprocess.run(
            self._celery("durable", "init"),
            cwd=folder,
            env=self._environment,
            check=True,
            capture_output=True,
            timeout=60,
        )

    @property
    def log(self) -> str:
        """What its worker logged so far."""
        return (self._folder / "worker.log").read_text(errors="replace")

    def _celery(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "celery", "-A", self._name, *arguments]

    @contextmanager
    def worker(self, *, concurrency: int) -> Iterator[int]:
        """Yield the process id of a worker that takes messages."""
        options = ["-c", str(concurrency), "-l", "INFO", "--without-gossip", "--without-mingle"]
        with (self._folder / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                self._celery("worker", *options),
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: " ready." in self.log, timeout=40, what=lambda: self.log)
            yield process.pid
        finally:
            process.terminate()
            process.wait(timeout=30)

    def run(self, *, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [sys.executable, f"{self._name}.py"],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
