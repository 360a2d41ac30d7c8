"""Waiting for results: from a task's end to the return of `get()`, and what asking costs meanwhile.

One broker (Redis), one worker each with two pool children; each side is another result backend. The task
returns the wall clock's time at its end, so that a latency holds the commit of its result too.
"""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Any

import psycopg
from celery.result import ResultSet

from benchmarks.cases.plain import DATABASE, OURS, REDIS, workers
from benchmarks.measuring import Spread, each, interleaved, ratio, timed
from benchmarks.report import Row, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting
    from benchmarks.workers import Worker

_SHORT, _LONG = (0.02, 0.1, 0.5), (1.5, 3.0)


def run(setting: Setting) -> Iterable[Row]:
    """Compare latencies, questions and joins."""
    sides = workers(setting, "waiting")
    yield from _latencies(sides, _SHORT, setting.rounds(10, 3), Target(at_most=10, of="figure"))
    yield from _latencies(sides, _LONG, setting.rounds(8, 2), Target(at_most=50, of="figure"))
    seconds = float(setting.rounds(10, 4))
    for name, worker in sides.items():
        asked = _questions(worker, _counter(worker), seconds)
        target = Target(at_most=50, of="figure") if name == OURS else None
        yield Row(
            f"{name}, a process that waits {seconds:g} s", Spread.of([asked]), "questions/s", target=target
        )
    yield from _joins(sides, setting.rounds(300, 100), setting.rounds(3, 2))


def _latencies(
    sides: dict[str, Worker], naps: tuple[float, ...], rounds: int, target: Target
) -> Iterable[Row]:
    samples: dict[str, list[float]] = {name: [] for name in sides}

    def latency(name: str, turn: int) -> float:
        # not in step with anybody's pauses
        nap = naps[turn % len(naps)] * (1 + 0.13 * (turn % 7) / 7)
        ended = sides[name].app.tasks["benchmarks.nap"].delay(nap).get(timeout=30)
        return time.time() - ended

    samples = interleaved(each(sides, latency), rounds * len(naps), warm_up=1)
    what = f"end of a task of {naps[0]:g} to {naps[-1]:g} s to the return of get()"
    for name, values in samples.items():
        yield Row(
            f"{name}, {what}", Spread.of(values).times(1000), "ms", target=target if name == OURS else None
        )
    for name in (DATABASE, REDIS):
        yield Row(f"{OURS}, {what}", None, "", ratio(samples[OURS], samples[name]), name)


def _questions(worker: Worker, count: Callable[[], int], seconds: float) -> float:
    """Return how many more statements a second there are while this process waits than while it does not."""

    def counted() -> int:
        Event().wait(
            1.2
        )  # a session of Postgres tells what it has counted with its first statement after a second
        _ = worker.app.AsyncResult("nobody").state
        return count()

    def rate(work: Callable[[], object]) -> float:
        before = counted()
        work()
        return (counted() - before) / seconds

    idle = rate(lambda: Event().wait(seconds))
    result = worker.app.tasks["benchmarks.nap"].delay(seconds)
    waiting = rate(lambda: result.get(timeout=30 + seconds))
    return max(0.0, waiting - idle)


def _counter(worker: Worker) -> Callable[[], int]:
    """Return what counts the statements of a backend: transactions of its database, or Redis' commands."""
    backend: Any = worker.app.conf.result_backend
    if backend.startswith("redis:"):
        import redis

        client: Any = redis.Redis.from_url(backend)
        return lambda: int(client.info("stats")["total_commands_processed"])
    url = "postgresql" + backend[backend.index("://") :]

    def transactions() -> int:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(
                "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
            ).fetchone()
        return int(row[0]) if row else 0

    return transactions


def _joins(sides: dict[str, Worker], size: int, rounds: int) -> Iterable[Row]:
    ids: dict[str, list[str]] = {}
    for name, worker in sides.items():
        results = [worker.app.tasks["benchmarks.nothing"].delay() for _ in range(size)]
        ResultSet(results).get(timeout=120)
        ids[name] = [result.id for result in results]

    def join(name: str, _: int) -> float:
        app = sides[name].app
        return timed(lambda: ResultSet([app.AsyncResult(one) for one in ids[name]]).get(timeout=120))

    samples = interleaved(each(sides, join), rounds, warm_up=1)
    what = f"get() of {size} results that are there"
    for name, values in samples.items():
        yield Row(f"{name}, {what}", Spread.of(values).times(1000), "ms")
    for name in (DATABASE, REDIS):
        yield Row(f"{OURS}, {what}", None, "", ratio(samples[OURS], samples[name]), name)
