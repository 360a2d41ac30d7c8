"""What a channel has delivered and not heard of yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.transport import virtual

from celery_durable.store.consuming import Claimed

if TYPE_CHECKING:
    from celery_durable.transport.fetcher import Fetcher


class PostgresQoS(virtual.QoS):
    """kombu's book-keeping of deliveries; their fate is told to the fetcher, whatever thread decides it."""

    _quick_ack: Any  # what kombu's class has and its stubs leave out
    _flush: Any

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        # Also of a channel that is closed: what is acknowledged there was handed back.
        self._fetcher: Fetcher = channel.connection.fetcher

    def room(self) -> int | None:
        """Return how many more messages may be claimed, None for no limit."""
        if not self.can_consume():
            return 0
        if "can_consume" in self.__dict__:  # worker_disable_prefetch asks anew before every message
            return 1
        estimate: int | None = self.can_consume_max_estimate()
        return estimate

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge."""
        self._quick_ack(delivery_tag)
        self._fetcher.settle(claim_of(delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (kombu's signature)
        """Throw away, or hand to others."""
        self._quick_ack(delivery_tag)
        claim = claim_of(delivery_tag)
        if requeue:
            self._fetcher.give_back(claim, counted=True)
        else:
            self._fetcher.settle(claim)

    def restore_unacked(self) -> list[Any]:  # type: ignore[override]  # (kombu's own returns a list)
        """Hand back everything that was not acknowledged: it was not at fault."""
        self._flush()
        while self._delivered:
            tag, _ = self._delivered.popitem()
            self._fetcher.give_back(claim_of(tag), counted=False)
        return []


def claim_of(delivery_tag: str) -> Claimed:
    """Return the claim that a delivery tag names."""
    return Claimed(*map(int, delivery_tag.split(".")))
