"""One test's world: an app, its database and queue, its ledger and gates, and the workers it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.envelope import breaker, publish_stored
from celery_durable.store.keeping import Stored
from harness.tables import Tables
from harness.workers import Worker

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

    from harness.proxy import Proxy
    from harness.setup import Setup


class World:
    """What a test acts on.

    Arguments:
        setup: how the app is configured.
        url: the libpq URL of its database, past any proxy.
        proxy: what stands between everybody else and that database.
    """

    def __init__(self, setup: Setup, url: str, proxy: Proxy | None = None) -> None:
        self.setup = setup
        self._proxy = proxy
        self.ledger, self.gates = setup.ledger, setup.gates
        self.tables = Tables(url)
        self.app: Celery = setup.app()
        self.workers: list[Worker] = []

    @property
    def proxy(self) -> Proxy:
        """The proxy of a world that was made with one."""
        assert self._proxy is not None
        return self._proxy

    def start(self, **options: Any) -> Worker:
        """Start a worker; it may not be ready yet."""
        if self.setup.broker == self.setup.backend and "backend" in options:
            options.setdefault("broker", options["backend"])  # one database is both
        worker = Worker(self.setup, **options)
        self.workers.append(worker)
        return worker

    def worker(self, **options: Any) -> Worker:
        """Return a new worker that takes messages."""
        return self.start(**options).wait_until_ready()

    def pair(self, **options: Any) -> tuple[Worker, Worker]:
        """Return two new workers."""
        first, second = self.start(**options), self.start(**options)
        return first.wait_until_ready(), second.wait_until_ready()

    def send(self, task: str, *args: Any, **options: Any) -> AsyncResult[Any]:
        """Start a run."""
        return self.app.tasks[task].apply_async(args, **options)

    def publish_again(self, run_id: str, copies: int = 1) -> None:
        """Put copies of a run's message into the queue, as brokers do now and then."""
        run = self.tables.run(run_id)
        stored = Stored(run_id, bytes(run["message"]), bytes(run["body"]))
        assert not publish_stored(self.app, [stored] * copies)

    def owner(self, run_id: str) -> Worker:
        """Return the worker that holds a run's lease."""
        hostname = self.tables.attempts(run_id)[-1]["hostname"]
        (found,) = (worker for worker in self.workers if worker.name == hostname)
        return found

    def other(self, worker: Worker) -> Worker:
        """Return the other one of two workers."""
        (found,) = (one for one in self.workers if one is not worker and one.alive)
        return found

    def leave(self) -> None:
        """Kill what is left, close what is open."""
        for worker in self.workers:
            worker.clean_up()
        self.tables.close()
        backend: Any = self.app.backend
        backend.store.close()
        self.app.close()
        breaker.worked()  # the next world's broker is another one
