"""An order whose code changes while orders are under way."""

from __future__ import annotations

import os

from celery import Celery

import celery_durable as durable
from celery_durable.rehearsal import rehearse

URL = "durable+embedded://"
app = Celery(
    "change_code",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
app.conf.durable_version = "2026.2"
FIRST = 0  # the number of the first order


@durable.step
def pack(order: int) -> str:
    return f"parcel {order}"


@durable.step
def mail(parcel: str) -> str:
    return f"mail about {parcel}"


@durable.step
def text(parcel: str) -> str:
    return f"text message about {parcel}"


@app.task
def deliver(order: int) -> str:
    parcel = pack(order + FIRST)
    if durable.patched(
        "text-messages"
    ):  # orders that were here before 2026.2 send a mail, as they always did
        return text(parcel)
    return mail(parcel)


if __name__ == "__main__":
    result = deliver.delay(7)
    print(result.get())

    print(rehearse(app, result.id).outcome)  # what `durable check` does with each run

    FIRST = 1000  # as if a deploy brought this
    print(rehearse(app, result.id).problem)
