"""A trip whose last booking fails: the others are taken back."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "book_trip",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
BOOKED = Path("booked")  # what an airline and a hotel would know


@durable.step
def book(what: str) -> str:
    BOOKED.mkdir(exist_ok=True)
    (BOOKED / what).touch()
    return f"booking of {what}"


@durable.step(max_retries=5, retry_backoff=True)
def cancel_booking(what: str) -> None:
    (BOOKED / what).unlink(missing_ok=True)


@durable.step
def pay(cents: int) -> None:
    raise durable.Fatal(f"the card does not cover {cents} cents")


@app.task
def book_trip(*, wait_for_visa: bool = False) -> None:
    for what in ("flight", "hotel"):
        book(what)
        durable.on_rollback(cancel_booking, what)
    if wait_for_visa:
        durable.wait_for_signal("visa")
    pay(90_000)


def booked() -> list[str]:
    return sorted(path.name for path in BOOKED.iterdir())


if __name__ == "__main__":
    runs = durable.Runs(app)
    failed = book_trip.delay()
    print(failed.get(propagate=False), booked())
    print(*(step.key for step in runs.get(failed.id).steps), sep=", ")

    waiting = book_trip.delay(wait_for_visa=True)
    while runs.get(waiting.id).state != "waiting":
        pass
    print("waits for a visa", booked())
    runs.cancel(waiting.id, reason="the journey is off")
    waiting.get(propagate=False)
    print(waiting.state, booked())
