"""Calls that mean one run."""

from __future__ import annotations

import os

from celery import Celery

import celery_durable as durable

URL = "durable+embedded://"
app = Celery(
    "call_once",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)


@app.task
def order(article: str) -> str:
    return f"ordered {article}"


@app.task(singleton="{customer}")  # True would mean: by all arguments
def statement(customer: int) -> str:
    durable.current_run().set_progress("writing")
    return f"statement of customer {customer}"


@app.task
def index(page: str, text: str) -> str:
    return f"indexed {page}: {text}"


if __name__ == "__main__":
    # The browser sends its form twice: there is one order.
    first = order.apply_async(("a book",), idempotency_key="form-7", ttl=3600)
    second = order.apply_async(("a book",), idempotency_key="form-7", ttl=3600)
    print(second.id == first.id, second.get())

    # One run of this task for each customer at a time; the next call after its end starts another.
    statements = [statement.apply_async((7,), countdown=1) for _ in range(3)]
    print(len({one.id for one in statements}), statements[2].get())
    print(statement.delay(7).id == statements[0].id)

    # A page is saved again and again: it is indexed once, as it was at last.
    for text in ("d", "dr", "draft"):
        last = index.apply_async(("home", text), debounce_key="home", debounce=1, debounce_max=30)
    print(last.get())

    # At most one order for each customer in a minute; the others are told of that one.
    orders = [order.apply_async((what,), throttle_key="customer-7", throttle=60) for what in ("tea", "jam")]
    print([one.get() for one in orders])
