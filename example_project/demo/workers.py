"""Real Celery workers as subprocesses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]  # the folder in which `example_project` can be imported
GRACE = 8.0  # seconds for a worker to end by itself


class Worker:
    """One `celery worker` in a process group of its own, so that it can be killed whole."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                worker_command(name),
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its main process, which leads the group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its main process runs."""
        return self._process.poll() is None

    @property
    def was_killed(self) -> bool:
        """Whether it was SIGKILL that ended its main process."""
        return self._process.poll() == -signal.SIGKILL

    @property
    def ready(self) -> bool:
        """Whether it said that it takes tasks."""
        return " ready." in self.log.read_text("utf-8", errors="replace")

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text("utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def is_called(self, hostname: str) -> bool:
        """Whether this is the worker's name, which Celery extends by the machine's."""
        return hostname.partition("@")[0] == self.name

    def kill(self) -> None:
        """End it as a power cut would: main process, pool process and ffmpeg at once, no goodbyes."""
        with suppress(ProcessLookupError):  # a whole group that is gone needs no killing
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def ask_to_stop(self) -> None:
        """Tell it to finish what it does and to end."""
        self._process.terminate()

    def stop(self) -> None:
        """Wait until it has ended, but not for ever, and leave nothing of it behind."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self.kill()


def worker_command(name: str) -> list[str]:
    """The command a reader would type to start this worker."""
    celery = [sys.executable, "-m", "celery", "-A", "example_project.app"]
    return [*celery, "worker", "-n", f"{name}@%h", "-c", "1", "-l", "info"]


@contextmanager
def running(names: list[str], logs: Path) -> Iterator[list[Worker]]:
    """Start one worker per name and stop them all at the end, whatever that end is.

    Args:
        names: the workers' names, without the machine's.
        logs: the folder for their output.
    """
    workers: list[Worker] = []
    with ExitStack() as stopping:
        for name in names:
            worker = Worker(name, logs / f"worker-{name}.log")
            stopping.callback(worker.stop)
            workers.append(worker)
        for worker in workers:
            stopping.callback(worker.ask_to_stop)  # all of them before the first is waited for
        yield workers
