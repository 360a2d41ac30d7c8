"""The world of the semantics tests: one worker, the app's events as they arrive, and stories to compare."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.tables import Tables
from harness.waiting import eventually
from harness.workers import Worker

from semantics.app import make_app
from semantics.journal import close_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Task
    from celery.result import AsyncResult
    from harness.setup import Setup

IN_MAIN = ("task_received", "task_revoked")
PUBLISHING = ("before_task_publish", "after_task_publish")


class Semantics:
    """An app with a plain and a durable task of every body, and what happens to them.

    Arguments:
        setup: how the app is configured.
        url: the libpq URL of its database.
    """

    def __init__(self, setup: Setup, url: str) -> None:
        self.setup, self.ledger, self.gates = setup, setup.ledger, setup.gates
        self.tables = Tables(url)
        self.app = make_app(setup)
        self.worker = Worker(setup, concurrency=2, options=("--prefetch-multiplier=4",), app="semantics.app")
        self._events: list[dict[str, Any]] = []
        self._listening = threading.Event()
        self._receiver: Any = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self._listening.wait(20)
        self.worker.wait_until_ready()

    def task(self, kind: str, name: str) -> Task[..., Any]:
        """Return one of a pair of tasks."""
        return self.app.tasks[f"{kind}.{name}"]

    def outcome(self, result: AsyncResult[Any], timeout: float = 20.0) -> AsyncResult[Any]:
        """Return the result when its task is over and all its hooks were called."""
        eventually(
            result.ready, timeout=timeout, what=lambda: f"{result.id}, which is {result.state}, to be over"
        )
        return result

    def story(self, run_id: str, *, without: tuple[str, ...] = IN_MAIN) -> list[tuple[str, Any]]:
        """Return what hooks and signals saw of a run in the pool, in order, when it is over; without ids."""
        eventually(
            lambda: any(entry.event == "task_postrun" for entry in self.ledger.entries(run=run_id)),
            what=f"the end of {run_id}",
        )
        me = os.getpid()
        return [
            (entry.event, _without_ids(entry.detail, run_id))
            for entry in self.ledger.entries(run=run_id)
            if entry.event not in without and entry.pid != me
        ]

    def seen(self, run_id: str, event: str) -> list[Any]:
        """Return the details of all entries of one kind."""
        return [entry.detail for entry in self.ledger.entries(event, run=run_id)]

    def events(self, run_id: str, *awaited: str) -> list[str]:
        """Return the types of a task's events, in order, when those awaited have arrived."""

        def types() -> list[str]:
            found = sorted(
                (event for event in list(self._events) if event.get("uuid") == run_id),
                key=lambda event: event["clock"],
            )
            return [event["type"] for event in found]

        eventually(lambda: set(awaited) <= set(types()), what=lambda: f"{awaited} among {types()}")
        return types()

    def _listen(self) -> None:
        with self.app.connection_for_read() as connection:
            self._receiver = self.app.events.Receiver(connection, handlers={"*": self._events.append})
            self._receiver.on_consume_ready = lambda *_, **__: self._listening.set()
            for _ in self._receiver.consume(limit=None, safety_interval=0):
                pass

    def leave(self) -> None:
        """End worker, listener and connections."""
        self._receiver.should_stop = True
        self.worker.clean_up()
        self._listener.join(10)
        self.tables.close()
        backend: Any = self.app.backend
        backend.store.close()
        close_journal(self.ledger.path)
        self.app.close()


def _without_ids(detail: Any, run_id: str) -> Any:
    if isinstance(detail, str):
        return detail.replace(run_id, "<id>").replace("durable.", "<kind>.").replace("plain.", "<kind>.")
    if isinstance(detail, list):
        return [_without_ids(one, run_id) for one in detail]
    if isinstance(detail, dict):
        return {name: _without_ids(one, run_id) for name, one in detail.items()}
    return detail


@contextmanager
def semantics_on(setup: Setup, url: str) -> Iterator[Semantics]:
    """Yield a world with a running worker."""
    made = Semantics(setup, url)
    try:
        yield made
    finally:
        made.leave()
