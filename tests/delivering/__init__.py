"""An app on a real store whose runs execute here, message by message, through Celery's own tracer."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from celery import Celery
from celery.app.trace import build_tracer
from inspecting import execute

import celery_durable as durable
from celery_durable import envelope, hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store


class World:
    """An app whose broker is a list in memory, and one live worker.

    Arguments:
        store: the store.
        settings: Celery settings beside these.
    """

    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.app = Celery("delivered", broker="memory://", backend=f"durable+{store.url}")
        self.app.conf.update(task_default_queue=uuid.uuid4().hex, **settings)
        self.token = hooks.become_worker()
        with store.connections.dedicated() as connection:
            self.worker = store.keeper(connection).register(
                self.token, hostname="worker@one", pid=1, version="0"
            )

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        """Return a durable task of this body."""
        given = {"base": durable.DurableTask, "name": f"{body.__name__}-{uuid.uuid4()}", **options}
        return self.app.task(body, **given)

    def deliver(self, run_id: str) -> Any:
        """Execute the stored message of a run once, as a worker that gets it does."""
        (row,) = execute(self.store, "select message, body from durable.run where id = %s", run_id)
        headers = envelope.headers_of(bytes(row["message"]))
        accept = self.app.conf.accept_content
        args, kwargs, embed = envelope.body_of(bytes(row["message"]), bytes(row["body"]), accept)
        task = self.app.tasks[headers["task"]]
        trace = build_tracer(task.name, task, app=self.app, propagate=False)
        request = {**headers, **embed, "args": args, "kwargs": kwargs, "delivery_info": {}}
        return trace(run_id, args, kwargs, request)[0]

    def run(self, task: Any, *args: Any, **options: Any) -> str:
        """Send a task and execute its message; return its id."""
        run_id: str = task.apply_async(args, **options).id
        self.deliver(run_id)
        return run_id

    def state(self, run_id: str) -> tuple[str, str | None]:
        """Return state and reason of a run."""
        (row,) = execute(self.store, "select state, reason from durable.run where id = %s", run_id)
        return row["state"], row["reason"]

    def result(self, run_id: str) -> Any:
        """Return what `AsyncResult.result` says."""
        return self.app.AsyncResult(run_id).result

    def steps(self, run_id: str) -> dict[str, tuple[str, int]]:
        """Return outcome and attempt of each stored step."""
        rows = execute(
            self.store,
            "select c.key, c.outcome, c.attempt from durable.checkpoint c"
            " join durable.run r on r.key = c.run_key where r.id = %s order by c.seq",
            run_id,
        )
        return {row["key"]: (row["outcome"], row["attempt"]) for row in rows}


def pending(world: World) -> list[str]:
    """Return the ids of the runs that can be executed now."""
    rows = execute(world.store, "select id from durable.run where state = 'pending' order by key")
    return [row["id"] for row in rows]


def drain(world: World) -> None:
    """Execute whatever can be, message by message, until nothing is left to do."""
    while found := pending(world):
        for run_id in found:
            world.deliver(run_id)


@contextmanager
def delivering(store: Store, **settings: Any) -> Iterator[World]:
    """Yield such a world; the environment is as before at the end."""
    with patch.dict(os.environ):
        made = World(store, **settings)
        try:
            yield made
        finally:
            backend: Any = made.app.backend
            backend.store.close()
            made.app.close()
