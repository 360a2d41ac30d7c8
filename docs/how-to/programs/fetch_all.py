"""Three pages at once, and a worker that dies when two of them are there."""

from __future__ import annotations

import asyncio
import os
import signal

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "fetch_all",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)


@durable.step
async def fetch(name: str) -> str:
    if name == "c" and durable.current_run().attempt == 1:
        await asyncio.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    return f"page of {name}"


@durable.step
async def note(page: str) -> str:
    return page


async def one(name: str) -> str:
    return await note(await fetch(name))


@app.task
async def fetch_all(names: list[str]) -> list[str]:
    return list(await asyncio.gather(*(one(name) for name in names)))


if __name__ == "__main__":
    result = fetch_all.delay(["a", "b", "c"])
    print(result.get())
    print(*sorted(step.key for step in durable.Runs(app).get(result.id).steps), sep=", ")
