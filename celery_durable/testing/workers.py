"""A real worker in a thread of the test's process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery.contrib.testing.worker import start_worker
from celery.worker import state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery


@contextmanager
def worker(app: Celery, **options: Any) -> Iterator[Any]:
    """Run a worker for a while.

    Arguments:
        app: the app, pointed at a store of the test's own.
        options: `pool` (threads by default, or solo), `concurrency` (4) and what else Celery's worker takes.
    """
    chosen = {"pool": "threads", "concurrency": 4, "perform_ping_check": False, **options}
    with start_worker(app, **chosen) as running:
        try:
            yield running
        finally:
            # What Celery is about to say. A worker whose broker is polled sees it with the next message, or
            # in two seconds, and then looks for one message more.
            vars(state)["should_terminate"] = 0
            for _ in range(2):
                app.control.broadcast("ping", reply=False)
