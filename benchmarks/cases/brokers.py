"""The same plain Celery tasks on every broker that is there: one task's way, tasks and publishes per second.

Each broker has a prefork worker with two children and Redis as the result backend; samples are taken in turn.
One more has no Redis at all: its results are in the Postgres that is its broker.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
from celery.exceptions import TimeoutError as CeleryTimeoutError

from benchmarks.measuring import Spread, interleaved, ratio, timed
from benchmarks.report import Row, Target
from benchmarks.setting import Skipped
from benchmarks.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from benchmarks.setting import Setting

_BASE = "redis"
_OURS, _ALONE = "durable+postgresql", "Postgres alone"
_ONE_TASK = Target(at_most=10.0, of="figure")
_CHILDREN = 2
_START = 30.0


class BrokerWorker(Worker):
    """A worker on any broker, also on one without remote control."""

    def _wait(self, process: Any) -> None:
        self.app.tasks["benchmarks.nothing"].delay().get(timeout=_START)
        del process


def run(setting: Setting) -> Iterable[Row]:
    """Compare every broker with Redis."""
    if setting.redis is None:
        raise Skipped("it needs a Redis, to compare with and for the results")
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, url, options in _brokers(setting):
            worker = BrokerWorker(
                setting.directory,
                f"broker-{name.replace(' ', '-')}",
                broker=url,
                backend=url if name == _ALONE else setting.redis,
                concurrency=_CHILDREN,
                plain=True,
                counter=setting.redis,
                transport_options=options,
            )
            try:
                workers[name] = stack.enter_context(worker.running())
            except CeleryTimeoutError:
                setting.say(f"{name} left out: its worker handled no task within {_START:g} seconds")
        yield from _rows(setting, workers)


def _rows(setting: Setting, workers: dict[str, Worker]) -> Iterator[Row]:
    number = setting.rounds(400, 150)
    ways = interleaved(
        {name: partial(_one_task, worker) for name, worker in workers.items()},
        setting.rounds(60, 20),
        warm_up=3,
    )
    yield from _compared("one task, idle worker", ways, "ms", 1000.0)
    yield from _one_in_a_hundred(setting, workers)
    both: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    interleaved(
        {name: partial(_many_tasks, worker, number, both[name]) for name, worker in workers.items()},
        setting.rounds(5, 3),
    )
    published = {name: [rate for rate, _ in pairs] for name, pairs in both.items()}
    handled = {name: [rate for _, rate in pairs] for name, pairs in both.items()}
    yield from _compared("published by one process", published, "messages/s")
    yield from _compared("handled by two children, while publishing", handled, "tasks/s")


def _one_in_a_hundred(setting: Setting, workers: dict[str, Worker]) -> Iterator[Row]:
    """Compare what the slowest of a hundred tasks takes."""
    chosen = {name: partial(_one_task, workers[name]) for name in (_BASE, _OURS, _ALONE) if name in workers}
    for name, values in interleaved(chosen, setting.rounds(500, 100), warm_up=3).items():
        slowest = sorted(values)[len(values) * 99 // 100]
        yield Row(f"one task in a hundred is slower: {name}", Spread.of([slowest * 1000]), "ms")


def _compared(what: str, samples: dict[str, list[float]], unit: str, factor: float = 1.0) -> Iterator[Row]:
    for name, values in samples.items():
        spread = Spread.of(values).times(factor)
        if name == _BASE:
            yield Row(f"{what}: {name}", spread, unit)
        else:
            target = _ONE_TASK if unit == "ms" and name in (_OURS, _ALONE) else None
            yield Row(f"{what}: {name}", spread, unit, ratio(values, samples[_BASE]), _BASE, target)


def _one_task(worker: Worker, _: int) -> float:
    Event().wait(0.05)
    task = worker.app.tasks["benchmarks.nothing"]
    return timed(lambda: task.delay().get(timeout=30))


def _many_tasks(worker: Worker, number: int, rates: list[tuple[float, float]], _: int) -> float:
    import redis

    task = worker.app.tasks["benchmarks.nothing"]
    with redis.Redis.from_url(str(worker.counter_url)) as client:
        before = int(client.get(worker.counter) or 0)
        began = time.perf_counter()
        for _number in range(number):
            task.apply_async(ignore_result=True)
        published = time.perf_counter() - began
        while int(client.get(worker.counter) or 0) < before + number:
            Event().wait(0.002)
        handled = time.perf_counter() - began
    rates.append((number / published, number / handled))
    return number / handled


def _brokers(setting: Setting) -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield _BASE, str(setting.redis), {}
    yield _OURS, f"durable+{setting.database('broker')}", {"auto_migrate": True}
    yield _ALONE, f"durable+{setting.database('alone')}", {"auto_migrate": True}
    if url := os.environ.get("DURABLE_TEST_AMQP"):
        yield "rabbitmq", url, {}
    else:
        setting.say("rabbitmq left out: DURABLE_TEST_AMQP is not set")
    if find_spec("sqlalchemy"):
        yield "sqla+postgresql", f"sqla+{_psycopg(setting.database('sqla'))}", {}
    else:
        setting.say("sqla left out: SQLAlchemy is not installed")
    if find_spec("pgmq") and find_spec("kombu.transport.pgmq"):
        database = setting.database("pgmq")
        _install_pgmq(database)
        where = f"pgmq://{urlsplit(database).netloc}{urlsplit(database).path}"
        yield "pgmq", where, {"init_extension": False}  # its SQL is there, without the extension's packaging
    else:
        setting.say("pgmq left out: pip install pgmq, and kombu 5.7 or newer")


def _psycopg(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _install_pgmq(database: str) -> None:
    from pgmq.install import get_embedded_install_sql

    with psycopg.connect(database, autocommit=True) as connection, suppress(psycopg.errors.DuplicateSchema):
        connection.execute(get_embedded_install_sql().encode(), prepare=False)
