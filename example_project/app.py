"""The Celery app: `celery -A example_project.app worker`."""

from __future__ import annotations

import os

from celery import Celery

import celery_durable as durable

EMBEDDED = "durable+embedded://"  # a real Postgres out of a wheel; nothing to install or start

app = Celery(
    "media",
    broker=os.environ.get("MEDIA_BROKER_URL", EMBEDDED),
    backend=os.environ.get("MEDIA_BACKEND_URL", EMBEDDED),
    task_cls=durable.DurableTask,
    include=["example_project.tasks"],
)

# How long a worker may be silent before another one takes over its runs, in seconds. The default
# of 30 forgives a worker a long pause; here somebody kills one and waits to see what happens.
app.conf.durable_lease = 5
