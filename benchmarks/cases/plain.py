"""A task without steps: `DurableTask` on this backend against Celery's own task on two of its backends.

One broker (Redis), one worker each with two pool children and Celery's defaults. A counter in Redis, written
by every worker after each task, says when a batch is done, so that nobody polls a result backend meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from benchmarks.measuring import Spread, each, interleaved, ratio, timed
from benchmarks.report import Row, Target
from benchmarks.setting import Skipped
from benchmarks.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.setting import Setting

OURS, DATABASE, REDIS = "DurableTask", "Task on db+postgresql", "Task on redis"
_DEADLINE = 120.0


@dataclass(frozen=True)
class _Batch:
    """What one batch took, in tasks per second."""

    submitted: float
    executed: float
    together: float


def run(setting: Setting) -> Iterable[Row]:
    """Compare throughput and latency."""
    sides = workers(setting)
    size = setting.rounds(200, 100)
    batches: dict[str, list[_Batch]] = {name: [] for name in sides}

    def batch(name: str, _: int) -> float:
        batches[name].append(_batch(sides[name], size, setting.redis or ""))
        return 0.0

    def latency(name: str, _: int) -> float:
        task = sides[name].app.tasks["benchmarks.nothing"]
        return timed(lambda: task.delay().get(timeout=30))

    interleaved(each(sides, batch), setting.rounds(13, 3))
    latencies = interleaved(each(sides, latency), setting.rounds(25, 8), warm_up=2)
    for what, of in (
        ("submitted, no worker at work", "submitted"),
        ("executed, from a full queue", "executed"),
        ("submitted and executed, together", "together"),
    ):
        speeds = {name: [getattr(one, of) for one in batches[name]] for name in sides}
        yield from _rows(speeds, what, "tasks/s", 1.0, Target(at_least=1) if of != "submitted" else None)
    yield from _rows(latencies, "delay() and get(), one at a time", "ms", 1000.0, None)


def workers(setting: Setting, purpose: str = "plain") -> dict[str, Worker]:
    """Start one worker on each result backend; return them by the backend's name."""
    if setting.redis is None:
        reason = "it compares result backends on one broker, and no Redis answers (--redis URL)"
        raise Skipped(reason)
    database = setting.database(purpose)
    backends = {
        OURS: f"durable+{setting.database(purpose + '_durable')}",
        DATABASE: "db+" + urlunsplit(urlsplit(database)._replace(scheme="postgresql+psycopg")),
        REDIS: setting.redis,
    }
    return {
        name: setting.open_things.enter_context(
            Worker(
                setting.directory,
                f"{purpose}-{number}",
                broker=setting.redis,
                backend=backend,
                concurrency=2,
                plain=name != OURS,
                counter=setting.redis,
            ).running()
        )
        for number, (name, backend) in enumerate(backends.items())
    }


def _batch(worker: Worker, size: int, redis_url: str) -> _Batch:
    """Submit a batch to a worker that does not listen, then let it; then one to a worker that does."""
    import redis

    counter: Any = redis.Redis.from_url(redis_url)
    task = worker.app.tasks["benchmarks.nothing"]

    def submit() -> None:
        for _ in range(size):
            task.delay()

    def finish() -> None:
        pause, deadline = Event(), time.monotonic() + _DEADLINE
        while int(counter.get(worker.counter) or 0) < size:
            if time.monotonic() > deadline:
                message = f"{worker.name} did not finish {size} tasks within {_DEADLINE:g} s"
                raise RuntimeError(message)
            pause.wait(0.005)
        counter.delete(worker.counter)

    control: Any = worker.app.control
    counter.delete(worker.counter)
    control.cancel_consumer(worker.name, destination=[worker.node], reply=True, timeout=5)
    submitting = timed(submit)
    began = time.perf_counter()
    control.broadcast("add_consumer", arguments={"queue": worker.name}, destination=[worker.node])
    finish()
    executing = time.perf_counter() - began

    def both() -> None:
        submit()
        finish()

    return _Batch(size / submitting, size / executing, size / timed(both))


def _rows(
    samples: dict[str, list[float]], what: str, unit: str, factor: float, target: Target | None
) -> Iterable[Row]:
    for name, values in samples.items():
        yield Row(f"{name}, {what}", Spread.of(values).times(factor), unit)
    for name in (DATABASE, REDIS):
        yield Row(
            f"{OURS}, {what}",
            None,
            "",
            ratio(samples[OURS], samples[name]),
            name,
            target if name == DATABASE else None,
        )
