"""Exports: one at a time for each customer, and no more than the partner's API takes."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

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
def write_file(customer: int) -> list[float]:
    print("writing the export of customer", customer)
    began = durable.now().timestamp()
    threading.Event().wait(0.1)  # as if it were much work
    return [began, durable.now().timestamp()]


@app.task(concurrency_key="customer-{customer}", concurrency_limit=1)
def export(customer: int) -> list[float]:
    return write_file(customer)


@app.task(concurrency_key="partner-api", start_rate="2/s")
def upload(part: str) -> float:
    print("uploading", part)
    return durable.now().timestamp()


if __name__ == "__main__":
    exports = [export.delay(customer=7) for _ in range(3)]
    times = sorted(one.get() for one in exports)
    print("one after the other:", all(a[1] <= b[0] for a, b in pairwise(times)))

    uploads = [upload.delay(part) for part in "abcdef"]
    starts = sorted(one.get() for one in uploads)
    print("six uploads take two seconds:", round(starts[-1] - starts[0]) >= len("abcdef") / 2 - 1)
