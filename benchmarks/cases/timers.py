"""Timers that are due all at once, drained through a real broker, against what the broker itself can take.

As many rows as there are timers wait for one moment; keeper processes wake and publish them. The base is the
rate at which as many processes publish the same message with kombu and nothing else. Meanwhile single timers
come due.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import uuid
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any

import redis

from benchmarks.app import make_app
from benchmarks.measuring import Spread
from benchmarks.report import Row, Target
from benchmarks.setting import Skipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.setting import Setting
    from celery_durable.store.connections import Connection

_COPIES = """
insert into durable.run (id, task, queue, state, reason, due, message, body)
select made.id, r.task, r.queue, 'waiting', 'timer', now() + %(until)s * interval '1 s',
       convert_to(replace(convert_from(r.message, 'UTF8'), r.id, made.id), 'UTF8'), r.body
from durable.run r, lateral (select gen_random_uuid()::text as id from generate_series(1, %(count)s)) as made
where r.id = %(like)s"""
_SINGLE = (
    "select published_at - due_at as late from single join durable.run using (id) where published_at > due_at"
)
_MESSAGE = "select message, body from durable.run where id = %s"
_STILL_DUE = "select key from durable.run where state = 'waiting' and due < now() limit 1"
_EVERY = 0.5
_AT_ONCE = Target(at_most=1000.0, of="figure")
_AS_FAST = Target(at_least=0.5)


def run(setting: Setting) -> Iterable[Row]:
    """Drain with one keeper and with two."""
    if setting.redis is None:
        raise Skipped("no Redis answers")
    count = setting.rounds(100_000, 10_000)
    for keepers in (1, 2):
        drain = _Drain(setting, keepers, count)
        rate, base, late = drain.measured()
        label = f"{keepers} process{'es' if keepers > 1 else ''}"
        name = f"kombu publishes to Redis, {label}"
        yield Row(name, Spread.of(base), "messages/s")
        yield Row(
            f"{count:,} timers due at once, {label}",
            Spread.of([rate]),
            "messages/s",
            Spread.of([rate / one for one in base]),
            name,
            _AS_FAST,
        )
        yield Row(f"single timers meanwhile, {label}: late by", Spread.of(late), "ms")
        latest = f"single timers meanwhile, {label}: the latest of {len(late)}"
        yield Row(latest, Spread.of([max(late)]), "ms", target=_AT_ONCE)


class _Drain:
    """One database full of timers, and a queue.

    Arguments:
        setting: where.
        keepers: how many processes.
        count: how many timers.
    """

    def __init__(self, setting: Setting, keepers: int, count: int) -> None:
        assert setting.redis is not None
        self._setting = setting
        self._keepers = keepers
        self._count = count
        self._queue = f"bench-timers-{uuid.uuid4().hex[:6]}"
        self._broker = setting.redis
        self._backend = f"durable+{setting.database(f'timers{keepers}')}"
        self._app = make_app(self._queue, broker=self._broker, backend=self._backend)
        backend: Any = self._app.backend
        self._store = backend.store
        self._store.migrate()
        self._redis = redis.Redis.from_url(self._broker)

    def measured(self) -> tuple[float, list[float], list[float]]:
        """Return the drain's rate, the broker's before and after, and how late single timers were, in ms."""
        with self._store.connections.dedicated() as connection:
            like = self._app.tasks["benchmarks.nothing"].apply_async(countdown=3600).id
            base = [self._published(connection, like)]
            with self._running():
                connection.execute("create table single (id text, due_at timestamptz)")
                connection.execute("set synchronous_commit = off")
                connection.execute(_COPIES, {"count": self._count, "like": like, "until": 0})
                rate = self._watched(connection, like)
            late = [row["late"].total_seconds() * 1000 for row in connection.execute(_SINGLE).fetchall()]
            base.append(self._published(connection, like))
        self._redis.delete(self._queue)
        self._store.close()
        return rate, base, late

    def _watched(self, connection: Connection, like: str) -> float:
        """Add a timer now and then until all are published; return how many were each second."""
        began = time.monotonic()
        added = 0
        while (there := self._redis.llen(self._queue)) < self._count:
            if time.monotonic() > began + 600:
                message = f"{there} of {self._count} timers have fired after ten minutes"
                raise RuntimeError(message)
            connection.execute(
                f"with made as ({_COPIES} returning id, due) insert into single select id, due from made",
                {"count": 1, "like": like, "until": _EVERY},
            )
            added += 1
            Event().wait(_EVERY)
        seconds = time.monotonic() - began
        while connection.execute(_STILL_DUE).fetchall():
            Event().wait(0.1)
        return (self._count + added) / seconds

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Keepers, as `celery durable keeper` runs them."""
        starts = multiprocessing.get_context("spawn")
        processes = [
            starts.Process(target=_keep, args=(self._queue, self._broker, self._backend))
            for _ in range(self._keepers)
        ]
        for process in processes:
            process.start()
        with self._store.connections.dedicated() as connection:
            while len(connection.execute("select id from durable.worker").fetchall()) < self._keepers:
                Event().wait(0.1)
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
                process.join()

    def _published(self, connection: Connection, like: str) -> float:
        """Return how many messages processes publish in a second, with nothing but kombu."""
        each = self._setting.rounds(5000, 1500)
        queue = f"{self._queue}-base"
        ((message, body),) = (row.values() for row in connection.execute(_MESSAGE, (like,)).fetchall())
        job = (queue, self._broker, bytes(message).replace(self._queue.encode(), queue.encode()), bytes(body))
        with multiprocessing.get_context("spawn").Pool(self._keepers) as pool:
            pool.map(_publish, [(*job, 50)] * self._keepers, chunksize=1)
            began = time.monotonic()
            pool.map(_publish, [(*job, each)] * self._keepers, chunksize=1)
            seconds = time.monotonic() - began
        self._redis.delete(queue)
        return each * self._keepers / seconds


def _keep(queue: str, broker: str, backend: str) -> None:
    from celery_durable.keeper import run_standalone

    run_standalone(make_app(queue, broker=broker, backend=backend))


def _publish(job: tuple[str, str, bytes, bytes, int]) -> None:
    """Publish one message of a run again and again, as its envelope has it."""
    queue, broker, message, body, count = job
    app = make_app(queue, broker=broker, backend="disabled://")
    options = json.loads(message)
    options.pop("declare", None)
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            producer.publish(body, **options)
