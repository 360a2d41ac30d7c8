"""An expense that somebody has to approve, and that is paid the next day."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "approvals",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
NEXT_DAY = timedelta(seconds=3)  # a short day, for a program that you wait for


@dataclass
class Approval:
    """What the form sends."""

    by: str
    limit: int


@durable.step
def pay(cents: int) -> str:
    return f"paid {cents}"


@app.task
def expense(cents: int) -> str:
    try:
        approval = durable.wait_for_signal("approved", timeout=timedelta(seconds=5), type=Approval)
    except durable.SignalTimeout:
        return "nobody answered"
    if cents > approval.limit:
        return f"too much for {approval.by}"
    durable.sleep(NEXT_DAY)
    return pay(cents)


if __name__ == "__main__":
    cheap, dear, forgotten = (expense.delay(cents) for cents in (500, 90_000, 100))
    for one in (cheap, dear):
        durable.send_signal(one.id, "approved", Approval("ada", limit=10_000), idempotency_key="form-1")
    print(dear.get())
    print(cheap.get())
    print(forgotten.get())
