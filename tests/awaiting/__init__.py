"""An app that waits for results through a proxy that counts, and a hand that stores them past it."""

from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, states
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import ResultSet
from contending import background
from harness.proxy import proxied
from harness.waiting import eventually

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from celery.result import AsyncResult
    from harness.proxy import Proxy

MOST = 50  # questions a second
BURST = 25

_FINISH = """
update durable.run set state = %s, reason = %s, due = null, result = %s, result_type = 'application/json',
    meta = %s, finished_at = now() where id = %s
"""


def new_id() -> str:
    return str(uuid.uuid4())


class Scene:
    """One app that waits, and another that stores.

    Arguments:
        proxy: before the database of the app that waits.
        url: the database itself.
        settings: Celery settings of the app that waits.
    """

    def __init__(self, proxy: Proxy, url: str, **settings: Any) -> None:
        self.proxy = proxy
        self.app = app_on(proxy.url, **settings)
        self._other = app_on(url)
        self.backend: Any = self.app.backend

    def store(self, task_id: str, value: Any = "value", state: str = states.SUCCESS) -> None:
        """Store a state as a worker does for a plain task."""
        self._other.backend.store_result(task_id, value, state)

    def store_all(self, ids: list[str]) -> None:
        """Store the success of many, each its own id."""
        backend: Any = self._other.backend
        backend.store.connections.once(
            lambda connection: connection.execute(
                "insert into durable.result (task_id, status, result, result_type)"
                " select id, 'SUCCESS', convert_to('\"' || id || '\"', 'UTF8'), 'application/json'"
                " from unnest(%s::text[]) id on conflict (task_id) do update"
                " set status = excluded.status, result = excluded.result",
                [ids],
            )
        )

    def hurry(self) -> None:
        """Store without waiting for the disk."""
        backend: Any = self._other.backend
        backend.store.connections.once(lambda connection: connection.execute("set synchronous_commit = off"))

    def store_again(self, one: str, many: list[str]) -> None:
        """Store these when Postgres has been away."""
        backend: Any = self._other.backend
        backend.store.close()
        self.store_all([one, *many])

    def run(self) -> AsyncResult[Any]:
        """Send a durable task that no worker will take."""
        return self.app.tasks["nothing"].delay()

    def finish(self, run_id: str, state: str = "succeeded", result: bytes = b'"done"', **more: Any) -> None:
        """Let a run be final."""
        backend: Any = self._other.backend
        values = [state, more.get("reason"), result, more.get("meta"), run_id]
        backend.store.connections.once(lambda connection: connection.execute(_FINISH, values))

    def result(self, task_id: str | None = None) -> AsyncResult[Any]:
        return self.app.AsyncResult(task_id or new_id())

    def questions(self) -> int:
        """Return how many statements the waiting process has sent so far."""
        return len(self.proxy.statements)

    def waiting(self, work: Callable[[], Any]) -> Future[Any]:
        """Start a thread that waits for results; return when it is asking, or has somebody ask for it."""
        before = len(self.backend._poller._place.active)
        future = background(work)
        eventually(
            lambda: len(self.backend._poller._place.active) > before or future.done(), what="a thread to wait"
        )
        return future

    def close(self) -> None:
        for app in (self.app, self._other):
            close(app)


def nothing() -> None:
    """Do nothing."""


def app_on(url: str, **settings: Any) -> Celery:
    """Return an app with one durable task, on a database that it may migrate."""
    app = Celery("waits", broker="memory://", backend=f"durable+{url}", set_as_current=False)
    app.conf.update(durable_auto_migrate=True, **settings)
    app.task(nothing, name="nothing", base=durable.DurableTask, shared=False)
    app.finalize()
    return app


def close(app: Celery) -> None:
    """Close the app and its connections."""
    backend: Any = app.backend
    backend.store.close()
    app.close()


@contextmanager
def scene_on(url: str, *, waiting_on: str | None = None, **settings: Any) -> Iterator[Scene]:
    """Yield a scene on a database; those who wait may use another URL of it."""
    with proxied(waiting_on or url) as proxy:
        made = Scene(proxy, url, **settings)
        made.store(new_id())  # the schema is there, the connections are open
        _ = made.result().state
        try:
            yield made
        finally:
            made.close()


class Stopwatch:
    """Seconds since it was made, and the questions asked meanwhile."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._began, self._questions = time.monotonic(), scene.questions()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def questions(self) -> int:
        return self._scene.questions() - self._questions


def joined(scene: Scene, ids: list[str], **options: Any) -> Callable[[], Any]:
    """Return what waits for a set of results."""
    return lambda: ResultSet([scene.result(one) for one in ids]).get(**{"timeout": 20, **options})


def ends_at_its_timeout(waiting: Future[Any]) -> None:
    """Check that a thread has waited in vain."""
    with pytest.raises(ResultTimeoutError):
        waiting.result(20)


def at_most(parties: int) -> threading.Barrier:
    """Return a barrier that breaks rather than hang."""
    return threading.Barrier(parties, timeout=20)
