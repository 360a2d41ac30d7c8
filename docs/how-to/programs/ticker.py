"""A run that goes on for ever, a few rounds at a time."""

from __future__ import annotations

import os

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "ticker",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
ROUNDS = 10


@durable.step
def add(total: int, number: int) -> int:
    return total + number


@app.task
def collect(total: int = 0) -> int:
    for _ in range(ROUNDS):
        number = durable.wait_for_signal("number")
        if number is None:
            return total
        total = add(total, number)
    return durable.continue_as(total)


if __name__ == "__main__":
    run = collect.delay()
    for number in [*range(25), None]:
        durable.send_signal(run.id, "number", number)
    print(run.get())
    print(len(durable.Runs(app).get(run.id).steps), "checkpoints are left")
