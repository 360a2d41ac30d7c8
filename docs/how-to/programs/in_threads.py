"""Steps in threads of the body's own: each call has a key, and is handed the run's context."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "in_threads",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)


@durable.step
def thumbnail(path: str, second: int) -> str:
    return f"{path}-{second}.png"


@app.task
def thumbnails(path: str) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(copy_context().run, thumbnail.options(key=f"at-{second}"), path, second)
            for second in range(0, 60, 10)
        ]
        return [call.result() for call in calls]


if __name__ == "__main__":
    print(*thumbnails.delay("cat").get())
