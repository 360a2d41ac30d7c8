"""Where the benchmarks run: a Postgres, a broker, databases that are dropped at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg

from celery_durable.config import Settings
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Skipped(Exception):  # noqa: N818  (not an error: the reason is printed)
    """This benchmark cannot run here."""


@dataclass
class Setting:
    """What every benchmark gets.

    Attributes:
        postgres: the URL of a server on which databases may be created.
        redis: the URL of a Redis database, None when there is none.
        quick: whether to take fewer samples.
        directory: for logs.
        say: prints progress.
        hold: seconds for which a transaction is held open where that is measured.
    """

    postgres: str
    redis: str | None
    quick: bool
    directory: Path
    say: Callable[[str], None]
    hold: float = 60.0
    open_things: ExitStack = field(default_factory=ExitStack)

    def rounds(self, full: int, quick: int) -> int:
        """Return how many samples to take."""
        return quick if self.quick else full

    def database(self, purpose: str) -> str:
        """Create a database; return its URL. It is dropped at the end of the benchmark."""
        name = f"durable_bench_{purpose}_{uuid.uuid4().hex[:8]}"
        with psycopg.connect(self.postgres, autocommit=True) as server:
            server.execute(f"create database {name}".encode())
        self.open_things.callback(self._drop, name)
        return urlunsplit(urlsplit(self.postgres)._replace(path=f"/{name}"))

    def _drop(self, name: str) -> None:
        with psycopg.connect(self.postgres, autocommit=True) as server:
            server.execute(f"drop database if exists {name} with (force)".encode())

    def store(self, purpose: str) -> Store:
        """Return a store on a database of its own, migrated."""
        store = Store(self.database(purpose), Settings())
        store.migrate()
        self.open_things.callback(store.connections.close)
        return store

    def broker(self) -> str:
        """Return the broker's URL: Redis, or a database of Postgres."""
        return self.redis or f"durable+{self.database('broker')}"

    def close(self) -> None:
        """Stop, close and drop what this benchmark has made."""
        self.open_things.close()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yield a directory that is deleted at the end."""
    path = Path(tempfile.mkdtemp(prefix="durable-bench-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def postgres_server(url: str | None) -> Iterator[str]:
    """Yield the URL of the server to measure on: the one given, or an embedded one."""
    url = url or os.environ.get("DURABLE_TEST_POSTGRES")
    if url:
        yield url
        return
    from celery_durable.store.embedded import ensure_server, release_server

    with temporary_directory() as directory:
        try:
            yield ensure_server(directory / "postgres")
        finally:
            release_server(directory / "postgres")


def redis_server(url: str | None) -> str | None:
    """Return the URL of the Redis to use, None when none answers."""
    import redis

    url = url or os.environ.get("DURABLE_TEST_REDIS") or "redis://127.0.0.1:6379/15"
    try:
        redis.Redis.from_url(url).ping()
    except redis.RedisError:
        return None
    return url
