"""Exports: one at a time for each customer, and no more than the partner's API takes."""

from __future__ import annotations

import os
import threading

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "limit_exports",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)


@durable.step
def write_file(customer: int, seconds: float) -> list[float]:
    began = durable.now().timestamp()
    threading.Event().wait(seconds)
    return [began, durable.now().timestamp()]


@app.task(concurrency_key="customer-{customer}", concurrency_limit=1)
def export(customer: int) -> list[float]:
    return write_file(customer, 0.1)


@app.task(concurrency_key="partner-api", start_rate="2/s")
def upload(number: int) -> float:
    return durable.now().timestamp()


if __name__ == "__main__":
    exports = [export.delay(customer=7) for _ in range(3)]
    times = sorted(one.get() for one in exports)
    print("one after the other:", all(a[1] <= b[0] for a, b in zip(times, times[1:], strict=False)))

    uploads = [upload.delay(number) for number in range(6)]
    starts = sorted(one.get() for one in uploads)
    print("six uploads took at least two seconds:", starts[-1] - starts[0] >= 1.9)
