"""Orders that fail half-way, and what to do with them."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

import celery_durable as durable
from celery_durable.operations import Filter, Runs

URL = "durable+embedded://"
app = Celery(
    "fork_orders",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
app.conf.durable_autoretry = False  # fail at once: this program is about what comes after
BANK_IS_UP = Path("bank-is-up")


@durable.step
def price(article: str) -> int:
    print("looking up the price of", article)
    return 100


@durable.step
def charge(cents: int) -> str:
    if not BANK_IS_UP.exists():
        raise ConnectionError("the bank does not answer")
    return f"charged {cents}"


@app.task
def order(article: str) -> str:
    return charge(price(article))


if __name__ == "__main__":
    runs = Runs(app)
    BANK_IS_UP.unlink(missing_ok=True)
    orders = [order.delay(article) for article in ("book", "lamp", "chair")]
    for one in orders:
        one.get(propagate=False)
        print(one.state)

    # The bank is back: resume all that failed because of it. Their prices are not looked up again.
    BANK_IS_UP.touch()
    failed = Filter(states=["failed"], task=order.name)
    print(len(runs.resume_many(failed, dry_run=True)), "runs would be resumed")
    runs.resume_many(failed, reason="the bank is back")
    print([app.AsyncResult(one.id).get() for one in orders])

    # One price was wrong: a new run with the same steps up to there, and another price.
    plan = runs.fork(orders[0].id, overrides={"price": 80}, dry_run=True)
    print("runs again:", *plan.again)
    fork = runs.fork(orders[0].id, overrides={"price": 80}, reason="it was on sale")
    print(app.AsyncResult(fork.id).get(), "instead of", app.AsyncResult(orders[0].id).get())
