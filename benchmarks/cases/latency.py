"""One step against one INSERT: in one process through the executor, and inside a task of a real worker.

Both write through psycopg with the same connection settings, prepared and with autocommit. The step returns a
dataclass: its encoding, its decoding and the digest of its arguments are part of it.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from benchmarks import table
from benchmarks.app import fetch, make_app
from benchmarks.measuring import Spread, interleaved, ratio, timed
from benchmarks.report import Row, Target
from benchmarks.workers import Worker
from celery_durable import context
from celery_durable.attempt import WorkerSeam
from celery_durable.backend import durable_backend
from celery_durable.checkpoint import StepWrite
from celery_durable.executor import Execution
from celery_durable.store.writes import NewRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting
    from celery_durable.run import Claim
    from celery_durable.store import Store

_STEP_TARGET = Target(at_most=1.35)


def step(setting: Setting) -> Iterable[Row]:
    """Measure in one process what a step costs and which layer costs it."""
    app = make_app("latency", broker="memory://", backend=f"durable+{setting.database('step')}")
    backend = durable_backend(app)
    store = backend.store
    store.migrate()
    setting.open_things.callback(store.connections.close)
    inserting = setting.open_things.enter_context(store.connections.dedicated())
    table.create(inserting)
    execution = Execution(
        _claimed(store), [], runs=store.runs, settings=store.settings, seam=WorkerSeam(backend)
    )
    stored = _claimed(store)
    with context.activate(execution):
        samples = interleaved(
            {
                "INSERT of 3 columns": lambda turn: timed(lambda: table.insert(inserting, turn)),
                "INSERT of a checkpoint's 15": lambda turn: timed(lambda: table.insert_wide(inserting, turn)),
                "RunStore.checkpoint": _checkpoint(store, stored),
                "step": lambda turn: timed(lambda: fetch("https://example.org/video", turn)),
            },
            setting.rounds(4000, 1000),
            warm_up=100,
        )
    return _rows(samples, "INSERT of 3 columns", {"step": _STEP_TARGET})


def _claimed(store: Store) -> Claim:
    token, run_id = uuid.uuid4(), str(uuid.uuid4())
    with store.connections.dedicated() as connection:
        store.keeper(connection).register(token, hostname="benchmark", pid=0, version="0")
    store.runs.enqueue(NewRun(run_id, "task", "queue", None, message=b"{}", body=b"[]"))
    claimed = store.runs.claim(run_id, fence=uuid.uuid4(), token=token, pid=0, revision=0)
    if not isinstance(claimed, tuple):
        message = f"claim refused: {claimed}"
        raise TypeError(message)
    return claimed[0]


def _checkpoint(store: Store, claim: Claim) -> Callable[[int], float]:
    def turn(number: int) -> float:
        write = StepWrite(**{**table.WIDE, "key": f"fetch#{number}", "seq": number})
        return timed(lambda: store.runs.checkpoint(claim.key, claim.fence, write))

    return turn


def worker_step(setting: Setting) -> Iterable[Row]:
    """Measure the same inside a task of a prefork worker: steps and INSERTs in turn, in the pool child."""
    database = setting.database("worker_step")
    worker = setting.open_things.enter_context(
        Worker(
            setting.directory,
            "step",
            broker=setting.broker(),
            backend=f"durable+{database}",
            concurrency=1,
        ).running()
    )
    size = setting.rounds(2000, 500)
    asked = worker.app.tasks["benchmarks.step_and_insert"].delay(database, size)
    samples: dict[str, Any] = asked.get(timeout=300)
    return _rows(samples, "INSERT of 3 columns", {"step": _STEP_TARGET})


def _rows(samples: dict[str, list[float]], base: str, targets: dict[str, Target]) -> Iterable[Row]:
    for name, values in samples.items():
        yield Row(
            name,
            Spread.of(values).times(1e6),
            "µs",
            None if name == base else ratio(values, samples[base]),
            "" if name == base else base,
            targets.get(name),
        )
