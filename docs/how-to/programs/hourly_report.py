"""A report for every hour: two beats start each one once, and what was missed is caught up."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from celery import Celery

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "durable+embedded://"
app = Celery(
    "hourly_report",
    broker=os.environ.get("BROKER", URL),
    backend=os.environ.get("BACKEND", URL),
    task_cls=durable.DurableTask,
)
HOUR = 2  # seconds, for a program that you wait for
CATCH_UP = 24  # hours


@app.task
def report(hour: int) -> int:
    return hour


@app.task(singleton=True)
def start_reports() -> None:
    this_hour = int(durable.now().timestamp()) // HOUR
    for hour in range(this_hour - CATCH_UP, this_hour):
        report.apply_async((hour,), idempotency_key=str(hour), ttl=2 * CATCH_UP * HOUR)


app.conf.beat_schedule = {"reports": {"task": start_reports.name, "schedule": HOUR}}


def beat(name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "celery", "-A", "hourly_report", "beat", "-s", name]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def started() -> list[int]:
    runs = durable.Runs(app).list(task=report.name, limit=500).runs
    return sorted(app.AsyncResult(run.id).get() for run in runs)


def wait_for(done: Callable[[], bool]) -> None:
    while not done():
        threading.Event().wait(0.2)


if __name__ == "__main__":
    beats = [beat("one"), beat("two")]
    wait_for(lambda: len(started()) >= CATCH_UP + 2)
    for one in beats:
        one.terminate()
        one.wait()

    last = started()[-1]
    wait_for(lambda: durable.now().timestamp() // HOUR > last + 3)  # nobody starts reports meanwhile
    again = beat("one")
    wait_for(lambda: started()[-1] > last + 3)
    again.terminate()
    again.wait()

    hours = started()
    print("twice:", len(hours) - len(set(hours)))
    print("left out:", hours[-1] - hours[0] + 1 - len(set(hours)))
