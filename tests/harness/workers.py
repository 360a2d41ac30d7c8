"""Real worker processes, and the ways in which they die."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.waiting import eventually

if TYPE_CHECKING:
    from harness.setup import Setup

_TESTS = Path(__file__).resolve().parents[1]
_numbers = itertools.count(1)
_SUSPENDED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Worker:
    """`celery worker` in a process group of its own.

    Arguments:
        setup: the app.
        pool: prefork, threads, solo or gevent.
        concurrency: children, threads or greenlets.
        backend: another URL of the store, such as a proxy's.
        broker: another URL of the broker.
        settings: Celery settings for this worker alone.
        options: further arguments of the command.
        app: the module that holds the app.
        alone: without mingle, gossip and heartbeats, by which workers know each other.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        pool: str = "prefork",
        concurrency: int = 1,
        backend: str | None = None,
        broker: str | None = None,
        settings: dict[str, Any] | None = None,
        options: tuple[str, ...] = (),
        app: str = "harness.app",
        alone: bool = True,
    ) -> None:
        self.name = f"worker{next(_numbers)}@harness"
        self.log = Path(setup.folder) / f"{self.name}.log"
        changed = {
            **setup.__dict__,
            "backend": backend or setup.backend,
            "broker": broker or setup.broker,
            "settings": {**setup.settings, **(settings or {})},
        }
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-n", self.name]
        command += ["-P", pool, "-c", str(concurrency), "-l", "INFO", *options]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"] if alone else []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=setup.folder,
                env={**environment(), **type(setup)(**changed).environment()},
                start_new_session=True,
            )
        self._frozen: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        """The main process."""
        return self.process.pid

    @property
    def output(self) -> str:
        """What it logged so far."""
        return self.log.read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether the main process runs."""
        return self.process.poll() is None

    def wait_until_ready(self, timeout: float = 40.0) -> Worker:
        """Return when it takes messages."""
        eventually(
            lambda: " ready." in self.output or not self.alive,
            timeout=timeout,
            what=lambda: f"{self.name} to be ready:\n{self.output}",
        )
        assert self.alive, f"{self.name} ended with status {self.process.returncode}:\n{self.output}"
        return self

    def wait_for_log(self, text: str, timeout: float = 20.0) -> None:
        """Return when `text` is in the log."""
        eventually(lambda: text in self.output, timeout=timeout, what=f"{text!r} in the log of {self.name}")

    def children(self) -> list[psutil.Process]:
        """The pool children and whatever else it has started."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    # -- ways to die --------------------------------------------------------------------------------------

    def kill9(self) -> None:
        """SIGKILL the main process; return when its children are gone too."""
        children = self.children()
        self.process.kill()
        self.process.wait(timeout=10)
        eventually(lambda: all(map(_is_dead, children)), what=f"the children of {self.name} to die with it")

    def kill_child(self, pid: int) -> None:
        """SIGKILL one pool child."""
        assert pid in {child.pid for child in self.children()}, f"{pid} is no child of {self.name}"
        os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP the whole process tree; return when all of it stands still."""
        main = psutil.Process(self.pid)
        main.suspend()
        eventually(lambda: _stands_still(main), what=f"{main} to stand still")
        self._frozen = [main, *self.children()]  # now that it starts no more
        for process in self._frozen[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        eventually(lambda: all(map(_stands_still, self._frozen)), what="a standstill")

    def thaw(self) -> None:
        """SIGCONT what was frozen: children first, so that they go on without their main process' help."""
        for process in reversed(self._frozen):
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._frozen = []

    def signal(self, number: int) -> None:
        """Send a signal to the main process."""
        self.process.send_signal(number)

    def terminate(self, timeout: float = 30.0) -> int:
        """SIGTERM it and wait for its end; return its exit status."""
        self.process.terminate()
        return self.wait_for_end(timeout)

    def wait_for_end(self, timeout: float = 30.0) -> int:
        """Return its exit status."""
        eventually(
            lambda: not self.alive, timeout=timeout, what=lambda: f"{self.name} to end:\n{self.output}"
        )
        return self.process.returncode

    def clean_up(self) -> None:
        """Leave nothing behind, however the test ended."""
        left = self.children()
        if self.alive:
            self.process.kill()
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=10)
        eventually(lambda: all(map(_is_dead, left)), what=f"the children of {self.name} to die")


def _is_dead(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return True


def _stands_still(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() in _SUSPENDED or _is_dead(process)
    return True


def environment() -> dict[str, str]:
    """Return the environment of processes under test."""
    # Only the tests' folder: the checkout beside it must not hide the installed wheel.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PYTHONPATH": str(_TESTS), "PYTHONFAULTHANDLER": "1"}
