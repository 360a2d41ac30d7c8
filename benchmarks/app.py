"""The tasks that are measured; worker processes import this module and find its settings in BENCH_*."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from celery import Celery, Task, signals

import celery_durable as durable
from benchmarks import table
from benchmarks.measuring import interleaved, timed
from celery_durable import transport

if TYPE_CHECKING:
    from collections.abc import Callable

transport.register()

_finished: list[float] = []
_began: dict[str, float] = {}
_count: list[Callable[[], object]] = []


def make_app(
    name: str, *, broker: str, backend: str, plain: bool = False, options: dict[str, Any] | None = None
) -> Celery:
    """Return an app with a queue of its own; `plain` ones use Celery's own task class."""
    app = Celery(name, broker=broker, backend=backend, task_cls=Task if plain else durable.DurableTask)
    app.conf.update(
        task_default_queue=name,
        broker_connection_retry_on_startup=True,
        durable_auto_migrate=True,
        broker_transport_options=options or {},
        worker_hijack_root_logger=False,
        result_expires=600,  # what a batch leaves behind in Redis goes soon
    )
    make_task: Any = app.task
    for task in (nothing, nap, steps, resumable, steps_until, step_and_insert):
        make_task(name=f"benchmarks.{task.__name__}", bind=task is resumable)(task)
    make_task(name="benchmarks.durations", base=Task)(durations)
    app.finalize()
    return app


@dataclass
class Video:
    """What a step returns: a typed value."""

    path: str
    seconds: float
    frames: int


@durable.step
def fetch(url: str, number: int) -> Video:
    """Do nothing, and say so in a typed value."""
    return Video(f"{url}/{number}", 12.5, number)


@durable.step
def note(number: int) -> dict[str, Any]:
    """Return what every peer can store without further ado."""
    return {"number": number, "path": f"https://example.org/video/{number}", "seconds": 12.5}


def nothing() -> int:
    """Be a task without steps."""
    return 1


def nap(seconds: float) -> float:
    """Do nothing for a while; return the moment of its end, by the machine's clock."""
    Event().wait(seconds)
    return time.time()


def steps(count: int) -> int:
    """Be a run of `count` steps."""
    for number in range(count):
        note(number)
    return count


def resumable(self: Any, count: int) -> tuple[float, float] | None:
    """Do `count` steps, leave; come back and say how long the way to the next one was, in seconds.

    The first number counts from the task's start in the worker, the second one from the body's start.
    """
    body = time.perf_counter()
    for number in range(count):
        note(number)
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    reached = time.perf_counter()
    return reached - _began[self.request.id], reached - body


def steps_until(start_at: float, seconds: float) -> int:
    """Do steps from a moment on for a while; return how many."""
    Event().wait(max(0.0, start_at - time.time()))
    deadline = time.monotonic() + seconds
    count = 0
    while time.monotonic() < deadline:
        fetch("https://example.org/video", count)
        count += 1
    return count


def step_and_insert(database: str, count: int) -> dict[str, list[float]]:
    """Do steps and INSERTs in turn; return the seconds that each took."""
    from celery_durable.store.connections import Connections

    with Connections(database).dedicated() as connection:
        table.create(connection)
        return interleaved(
            {
                "INSERT of 3 columns": lambda turn: timed(lambda: table.insert(connection, turn)),
                "step": lambda turn: timed(lambda: fetch("https://example.org/video", turn)),
            },
            count,
            warm_up=100,
        )


def durations() -> list[float]:
    """Return how long the tasks of this process took since the last call, in seconds, claim to commit."""
    taken = list(_finished)
    _finished.clear()
    return taken


@signals.task_prerun.connect
def _task_begins(task_id: str, **_: Any) -> None:
    _began[task_id] = time.perf_counter()


@signals.task_postrun.connect
def _task_ends(task_id: str, task: Any, **_: Any) -> None:
    taken = time.perf_counter() - _began.pop(task_id, time.perf_counter())
    if task.name != "benchmarks.durations":
        _finished.append(taken)
    if "BENCH_COUNTER" in os.environ:
        _counter()()


def _counter() -> Callable[[], object]:
    """Return what counts finished tasks, whatever their result backend: a key in Redis."""
    if not _count:
        import redis

        client = redis.Redis.from_url(os.environ["BENCH_REDIS"])
        _count.append(lambda: client.incr(os.environ["BENCH_COUNTER"]))
    return _count[0]


if "BENCH_NAME" in os.environ:
    app = make_app(
        os.environ["BENCH_NAME"],
        broker=os.environ["BENCH_BROKER"],
        backend=os.environ["BENCH_BACKEND"],
        plain="BENCH_PLAIN" in os.environ,
        options=json.loads(os.environ["BENCH_OPTIONS"]),
    )
