"""What happens to an order."""

from __future__ import annotations

from celery import shared_task

import celery_durable as durable
from shop.models import Order


@durable.step(max_retries=5, retry_backoff=True)
def charge(order_id: int) -> str:
    """Charge the customer; a bank would be sent `durable.idempotency_key()`, so that it charges once."""
    return f"receipt-{order_id}"


@durable.step
def note(order_id: int, receipt: str) -> None:
    """Write the receipt down."""
    Order.objects.filter(pk=order_id).update(receipt=receipt)


@shared_task
def fulfil(order_id: int) -> str:
    """Fulfil an order."""
    receipt = charge(order_id)
    note(order_id, receipt)
    return receipt
