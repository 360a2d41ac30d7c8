"""kombu's producer batches: many messages in one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_durable.store.messages import NewMessage


class PublishBatch:
    """Collects what a producer publishes to queues; what goes to an exchange is sent in its place.

    Arguments:
        channel: publishes.
        max_size: how many messages are collected at most.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._collected: list[NewMessage] = []

    def publish(self, message: dict[str, Any], exchange: str, routing_key: str, **options: Any) -> None:
        """Collect a message."""
        if exchange:
            self.flush()
            self.channel.basic_publish(message, exchange, routing_key, **options)
            return
        self._collected.append(self.channel.prepared(message, exchange, routing_key))
        if len(self._collected) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Store what was collected, in one transaction."""
        collected, self._collected = self._collected, []
        if collected:
            self.channel.send_many(collected)

    def discard(self) -> None:
        """Forget what was collected."""
        self._collected.clear()

    def close(self) -> None:
        """Nothing is left to do."""
