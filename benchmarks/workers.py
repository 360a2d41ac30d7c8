"""Real Celery workers, started and stopped by the benchmarks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

from benchmarks.app import make_app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START, _STOP = 60.0, 20.0


class Worker:
    """One worker, its app and its queue.

    Arguments:
        directory: where its log goes.
        name: a word for the queue's name.
        broker: the broker's URL.
        backend: the result backend's URL.
        concurrency: how many pool children.
        plain: whether its tasks are Celery's own.
        counter: the Redis URL in which each finished task is counted.
        transport_options: Celery's `broker_transport_options`.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        *,
        broker: str,
        backend: str,
        concurrency: int,
        plain: bool = False,
        counter: str | None = None,
        transport_options: dict[str, Any] | None = None,
    ) -> None:
        self.name = f"bench-{name}-{uuid.uuid4().hex[:6]}"
        self.counter, self.counter_url = f"{self.name}-finished", counter
        options = transport_options or {}
        self.app = make_app(self.name, broker=broker, backend=backend, plain=plain, options=options)
        self.node = f"{self.name}@localhost"
        self._log = directory / f"{self.name}.log"
        self._concurrency = concurrency
        self._environment = {
            **os.environ,
            "BENCH_NAME": self.name,
            "BENCH_BROKER": broker,
            "BENCH_BACKEND": backend,
            "BENCH_OPTIONS": json.dumps(options),
            **({"BENCH_PLAIN": "1"} if plain else {}),
            **({"BENCH_COUNTER": self.counter, "BENCH_REDIS": counter} if counter else {}),
        }

    @contextmanager
    def running(self) -> Iterator[Worker]:
        """Start the worker, yield it when it answers, stop it at the end."""
        command = [
            *(sys.executable, "-m", "celery", "-A", "benchmarks.app", "worker", "-P", "prefork"),
            *("-c", str(self._concurrency), "-Q", self.name, "-n", self.node, "-l", "warning"),
        ]
        with self._log.open("wb") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        try:
            self._wait(process)
            yield self
            self._tidy()
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        pause = Event()
        for _ in range(int(_START / 0.25)):
            if self.app.control.ping(destination=[self.node], timeout=0.2):
                return
            if process.poll() is not None:
                break
            pause.wait(0.05)
        message = f"The worker {self.name} did not start:\n{self._log.read_text(errors='replace')[-3000:]}"
        raise RuntimeError(message)

    def _tidy(self) -> None:
        """Leave nothing of this worker in the broker."""
        with self.app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            channel.queue_delete(self.name)
