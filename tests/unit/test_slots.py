"""Who goes first among runs that wait for a slot: as in the queues of the broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu import Connection

from celery_durable import slots, transport

transport.register()


@pytest.mark.parametrize(
    ("url", "urgent"),
    [("durable+postgresql://localhost/app", 9), ("amqp://localhost", 9), ("redis://localhost", 0)],
)
def test_the_most_urgent_priority_is_that_of_the_broker(url: str, urgent: int) -> None:
    producer: Any = SimpleNamespace(connection=Connection(url))

    assert max(range(10), key=lambda priority: slots.rank(producer, priority)) == urgent
