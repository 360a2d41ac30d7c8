"""The brokers of the tests: the shared ones by URL, a Redis of one's own, and what is in their queues."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis
from kombu import Connection

from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


SAME_POSTGRES = "postgres"
"""Instead of a broker's URL: the broker is the database that keeps the runs."""


def missing(reason: str) -> None:
    """Skip at home, fail in CI."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(reason)


def service(variable: str) -> str:
    """Return the URL in an environment variable."""
    url = os.environ.get(variable)
    if not url:
        missing(f"{variable} is not set")
    return str(url)


def free_port() -> int:
    """Return a port nobody listens on; below the ephemeral ones, so that no client takes it meanwhile."""
    for port in range(20000 + 97 * os.getpid() % 9000, 32000):  # far from where a test beside this one begins
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    message = "no free port below 32000"
    raise AssertionError(message)


@contextmanager
def queue_of_ones_own(broker: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a queue's name and the settings that keep it apart from other tests'; empty it afterwards."""
    queue = f"durable-test-{uuid.uuid4().hex[:12]}"
    if broker.startswith("redis"):
        yield queue, {"broker_transport_options": {"global_keyprefix": f"{queue}:"}}
        with suppress(redis.RedisError), redis.Redis.from_url(broker) as client:
            for key in client.scan_iter(f"{queue}:*", count=1000):
                client.delete(key)
    else:
        yield queue, {}
        if broker.startswith("amqp"):
            with Connection(broker) as connection, connection.channel() as channel:
                channel.queue_delete(queue)


class PrivateRedis:
    """A redis-server that a test may empty, stop, kill and start again, always empty."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("redis-server is not installed")
        self._program = str(program)
        self._folder = tempfile.mkdtemp(prefix="durable-redis-")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; return when it answers."""
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]
        self._process = subprocess.Popen(
            [self._program, "--port", str(self.port), *options],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, what="redis-server")

    def _answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """SIGKILL it: all messages are lost, and connections are refused."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP it: it takes connections and answers nothing."""
        psutil.Process(self._pid).suspend()

    def thaw(self) -> None:
        """SIGCONT it."""
        psutil.Process(self._pid).resume()

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def messages(self, queue: str) -> tuple[int, int]:
        """Return how many messages wait in a queue, and how many workers hold unacknowledged."""
        prefix = f"{queue}:"
        return self._count("llen", prefix + queue), self._count("hlen", prefix + "unacked")

    def wait_until_empty(self, queue: str) -> None:
        """Wait until a queue has no message, and no worker one that it has not acknowledged.

        A worker acknowledges a moment after everybody can see what has become of the run.
        """
        eventually(
            lambda: self.messages(queue) == (0, 0), what=lambda: f"left and held: {self.messages(queue)}"
        )

    def _count(self, command: str, key: str) -> int:
        return int(getattr(self.client, command)(key))

    def clean_up(self) -> None:
        """Leave nothing behind."""
        self.client.close()
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def private_redis() -> Iterator[PrivateRedis]:
    """Yield a running redis-server of one's own."""
    server = PrivateRedis()
    try:
        server.start()
        yield server
    finally:
        server.clean_up()
