"""Results outside workers: threads, scripts and web processes share a few connections, and keep them."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from awaiting import MOST, Scene, Stopwatch, app_on, at_most, close, new_id, scene_on
from celery import states
from harness.pooler import pooled
from harness.waiting import eventually, take

if TYPE_CHECKING:
    from collections.abc import Iterator

_OURS = """
select pid from pg_stat_activity where datname = current_database() and application_name = 'celery-durable'
"""


class Watch:
    """Looks at the server's sessions all the time; notes those of the project."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._over = threading.Event()
        self.before = self._now()
        self.seen: set[int] = set()
        self.most = 0
        self._thread = threading.Thread(target=self._look)

    def _now(self) -> set[int]:
        return {row[0] for row in self._connection.execute(_OURS).fetchall()}

    def _look(self) -> None:
        while not self._over.wait(0.003):
            now = self._now() - self.before
            self.seen |= now
            self.most = max(self.most, len(now))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()


@contextmanager
def watched(url: str) -> Iterator[Watch]:
    """Yield who looks at the sessions of a database."""
    watch = Watch(url)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def everything(app: Any, number: int) -> None:
    """Use the result API as a web process does."""
    task_id = new_id()
    result = app.AsyncResult(task_id)
    assert result.state == states.PENDING
    app.backend.store_result(task_id, number, states.SUCCESS)
    assert app.AsyncResult(task_id).get(timeout=30) == number
    assert app.GroupResult(new_id(), [app.AsyncResult(task_id)]).get(timeout=30) == [number]
    run = app.tasks["nothing"].delay()
    assert run.state == states.PENDING
    app.AsyncResult(task_id).forget()


@pytest.mark.parametrize("size", [1, 3])
def test_many_calls_from_many_threads_use_a_few_connections_and_keep_them(url: str, size: int) -> None:
    app = app_on(url, durable_pool_size=size)
    with watched(url) as watch, ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: everything(app, number), range(160)))
    close(app)
    # One more, now and then: a connection that checks the schema at the beginning.
    assert len(watch.seen) <= size + 1
    assert watch.most <= size + 1


def test_threads_that_wait_hold_one_connection(scene: Scene, url: str) -> None:
    barrier, ids = at_most(12), [new_id() for _ in range(12)]

    def wait(task_id: str) -> Any:
        barrier.wait()
        return scene.result(task_id).get(timeout=30)

    with watched(url) as watch, ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(wait, one) for one in ids]
        eventually(lambda: len(scene.backend._poller._place.active) == 12)
        take(1.3)
        scene.store_all(ids)
        assert [one.result(20) for one in waiting] == ids
    assert len(watch.seen) <= 1


SCRIPT = """
import sys
from celery import Celery
app = Celery(broker="memory://", backend="durable+" + sys.argv[1])
for number in range(200):
    assert app.AsyncResult("nobody").state == "PENDING"
    app.backend.store_result("script", number, "SUCCESS")
    assert app.AsyncResult("script").get(timeout=10) in range(200)
"""


def test_a_script_uses_one_connection(url: str, scene: Scene) -> None:
    with watched(url) as watch:
        subprocess.run([sys.executable, "-c", SCRIPT, url], check=True, timeout=60)
    assert len(watch.seen) <= 2  # the first one has looked at the schema


# -- PgBouncer --------------------------------------------------------------------------------------------


@pytest.fixture
def behind_a_pooler(url: str) -> Iterator[Scene]:
    """Return a scene whose app has two server connections, and one of these for a transaction only."""
    with (
        pooled(url, connections=2) as pooler,
        scene_on(url, waiting_on=pooler, durable_prepare_statements=False) as made,
    ):
        yield made


def test_waits_work_behind_pgbouncer_in_transaction_mode(behind_a_pooler: Scene) -> None:
    scene, ids = behind_a_pooler, [new_id() for _ in range(10)]
    clock = Stopwatch(scene)
    waiting = [scene.waiting(lambda one=one: scene.result(one).get(timeout=30)) for one in ids]
    take(0.3)
    scene.store_all(ids[:5])
    assert [one.result(20) for one in waiting[:5]] == ids[:5]
    take(1.2)
    scene.store_all(ids[5:])
    assert [one.result(20) for one in waiting[5:]] == ids[5:]
    assert clock.questions <= 25 + 2 + MOST * clock.seconds


def test_processes_that_wait_for_long_leave_the_connections_of_pgbouncer_to_others(
    behind_a_pooler: Scene,
) -> None:
    """More of them than there are connections: each holds one for a moment only."""
    scene = behind_a_pooler
    others = [app_on(scene.proxy.url, durable_prepare_statements=False) for _ in range(6)]
    task_id = new_id()
    with ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(lambda app=app: app.AsyncResult(task_id).get(timeout=30)) for app in others]
        eventually(lambda: all(app.backend._poller._place.leader for app in others))
        take(1.3)
        clock = Stopwatch(scene)
        for _ in range(20):
            assert scene.result().state == states.PENDING
        assert clock.seconds < 5
        scene.store(task_id, "for all")
        assert [one.result(20) for one in waiting] == ["for all"] * 6
    for app in others:
        close(app)
