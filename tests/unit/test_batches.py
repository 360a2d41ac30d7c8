"""How many due runs a keeper takes at a time."""

from __future__ import annotations

from celery_durable.keeper import services


def test_a_batch_is_as_large_as_the_broker_takes_in_a_quarter_of_a_second() -> None:
    assert services.next_batch(100, 0.1) == 250
    assert services.next_batch(500, 1.0) == 125
    assert services.next_batch(500, 100.0) == 50
    assert services.next_batch(100, 0.0) == services.BATCH
