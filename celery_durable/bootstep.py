"""What a worker gets: a heartbeat and the keeper services, started before its pool and stopped after it."""

from __future__ import annotations

import atexit
import sys
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from celery_durable import hooks, partly_read, plain, revoking
from celery_durable.keeper import Keeper

_TESTING = "celery.contrib.testing.worker"


class DurableStep(bootsteps.StartStopStep):
    """Keeps the worker's row alive and takes part in the keeper services."""

    label = "Durable"

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._keeper: Keeper | None = None
        self._worker = worker

    def create(self, worker: Any) -> Any:
        """Start the keeper: every step is created before any is started, so this is before the pool forks."""
        plain.register(worker.app)
        revoking.install()
        store = worker.app.backend.store
        store.connections.begin()  # a missing or newer schema stops the worker here, with its message
        self._keeper = Keeper(
            worker.app,
            store,
            token=hooks.become_worker(),
            hostname=worker.hostname,
            executing=_executing,
            reserved=_reserved,
            serves=store.settings.keeper,
        )
        self._keeper.start()
        signals.worker_shutting_down.connect(_drain, weak=False, dispatch_uid="celery-durable-drain")
        signals.worker_shutdown.connect(self._retire, weak=False)
        atexit.register(self._retire)
        if (testing := sys.modules.get(_TESTING)) is not None:  # its workers end without the signal above
            testing.test_worker_stopped.connect(self._test_is_over, weak=False)
        return self

    def start(self, worker: Any) -> None:
        """See to the event loop; the keeper is running already."""
        if (hub := getattr(worker, "hub", None)) is not None:
            partly_read.read_to_the_end(hub)

    def close(self, worker: Any) -> None:  # noqa: ARG002
        """Ask the runs to leave at their next step boundary: the worker stops."""
        hooks.start_draining()

    def stop(self, worker: Any) -> None:
        """Nothing yet: the pool may still be at work; see `_retire`."""

    def terminate(self, worker: Any) -> None:
        """Nothing yet: see `_retire`."""

    def _test_is_over(self, *, worker: Any, **_: Any) -> None:
        if worker is self._worker:
            sys.modules[_TESTING].test_worker_stopped.disconnect(self._test_is_over)
            self._retire()

    def _retire(self, **_: Any) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
            hooks.stop_draining()
            atexit.unregister(self._retire)


def _drain(**_: Any) -> None:
    hooks.start_draining()


def _executing() -> set[str]:
    # Celery 5.5 forgets what is reserved when its connection is lost, also what is being executed.
    requests = (*_snapshot(state.reserved_requests), *_snapshot(state.active_requests))
    return {request.id for request in requests}


def _reserved() -> int:
    return max(0, len(state.reserved_requests) - len(state.active_requests))


def _snapshot(requests: Any) -> list[Any]:
    while True:
        try:
            return list(requests)
        except RuntimeError:  # the worker's main thread changed it meanwhile
            continue
