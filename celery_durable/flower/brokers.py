"""The Postgres broker on Flower's own broker page and `/api/queues/length`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kombu import Connection

from celery_durable import transport
from celery_durable.store.messages import DEAD
from celery_durable.transport.broker import Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_OURS = "durable"


class PostgresBroker:
    """What Flower asks a broker.

    Arguments:
        url: the broker's.
        options: `broker_transport_options`.
    """

    def __init__(self, url: str, options: dict[str, Any] | None) -> None:
        transport.register()
        self._client = Connection(url, transport_options=options or {})

    async def queues(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Return what the queues with these names hold, and their dead-letter queues."""
        return await asyncio.to_thread(self._queues, {*names})

    def _queues(self, names: set[str]) -> list[dict[str, Any]]:
        broker = Broker.acquire(self._client)
        try:
            found = broker.messages.queues()
        finally:
            broker.release()
        return [
            {
                "name": queue.name,
                "messages": queue.ready + queue.held,
                "messages_ready": queue.ready,
                "messages_unacknowledged": queue.held,
                "consumers": queue.consumers,
            }
            for queue in found
            if queue.name.removesuffix(DEAD) in names
        ]


def understanding_postgres(others: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes Flower's view of a broker from its URL: of ours, or as `others` does."""

    def broker(url: str, *arguments: Any, **options: Any) -> Any:
        if urlsplit(url).scheme.partition("+")[0] == _OURS:
            return PostgresBroker(url, options.get("broker_options"))
        return others(url, *arguments, **options)

    return broker


def register() -> None:
    """Let Flower's views know the Postgres broker."""
    from flower import views

    views.Broker = understanding_postgres(views.Broker)
