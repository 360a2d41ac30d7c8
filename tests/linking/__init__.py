"""An app whose messages stay in its broker until a test executes them here, through Celery's own tracer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.trace import build_tracer
from inspecting import execute

import celery_durable as durable
from celery_durable import hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

_QUEUES = ("celery", "other")


class World:
    """An app with one worker row, and the tasks that a test gives it.

    Arguments:
        store: where its runs are.
        broker: a URL; in memory, messages are there to be looked at.
        settings: Celery settings beside those that this needs.
    """

    def __init__(self, store: Store, broker: str = "memory://", **settings: Any) -> None:
        self.store = store
        self.app = Celery("linking", broker=broker, backend=f"durable+{store.url}")
        self.app.conf.update(task_publish_retry=False, durable_check_interval=3600, **settings)
        self.sizes: list[int] = []
        self.executed: list[str] = []
        self._tracers: dict[str, Any] = {}
        if broker == "memory://":
            with self.app.connection_for_write() as connection:
                for queue in _QUEUES:
                    connection.channel().queue_declare(queue)
                    connection.channel().queue_purge(queue)

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        """Return a new task, durable unless it has another base."""
        given = {"base": durable.DurableTask, "name": body.__name__, "shared": False, **options}
        return self.app.task(body, **given)

    def start_worker(self) -> None:
        """Give this process a live worker row."""
        token = hooks.become_worker()
        with self.store.connections.dedicated() as connection:
            self.store.keeper(connection).register(token, hostname="worker@one", pid=1, version="0")

    def messages(self, queue: str = "celery") -> Iterator[Any]:
        """Take messages out of a queue until it is empty."""
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                yield message

    def sent(self, queue: str = "celery") -> list[str]:
        """Take all messages out of a queue; return their ids."""
        return [message.headers["id"] for message in self.messages(queue)]

    def deliver(self, message: Any) -> Any:
        """Execute a message as a pool child would; return what Celery's tracer returns."""
        headers, (args, kwargs, embed) = message.headers, message.decode()
        name = headers["task"]
        if name not in self._tracers:
            self._tracers[name] = build_tracer(name, self.app.tasks[name], app=self.app, propagate=False)
        self.sizes.append(len(message.body))
        self.executed.append(headers["id"])
        request = {**headers, **embed, "args": args, "kwargs": kwargs, "delivery_info": message.delivery_info}
        return self._tracers[name](headers["id"], args, kwargs, request)

    def work(self, limit: int | None = None) -> None:
        """Execute what is in the queue, and what that sends, and so on."""
        for number, message in enumerate(self.messages(), 1):
            self.deliver(message)
            if number == limit:
                return

    def runs(self) -> list[str]:
        """Return the ids of all runs, in the order in which they were stored."""
        return [row["id"] for row in execute(self.store, "select id from durable.run order by key")]

    def leave(self) -> None:
        """Take what is left in the broker, and close."""
        if self.app.conf.broker_url == "memory://":
            for queue in _QUEUES:
                self.sent(queue)
        backend: Any = self.app.backend
        backend.store.close()
        self.app.close()
