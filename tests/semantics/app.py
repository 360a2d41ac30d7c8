"""The app of the semantics tests; workers are started with `celery -A semantics.app worker`."""

from __future__ import annotations

import os

from celery import Celery
from harness.setup import VARIABLE, Setup

import celery_durable as durable
from semantics import bodies, registry, retrying, steps
from semantics.journal import open_journal

__all__ = ["bodies", "make_app", "retrying"]


def make_app(setup: Setup) -> Celery:
    """Return the app: the same in the test process and in workers."""
    made = Celery("semantics", broker=setup.broker, backend=setup.backend, task_cls=durable.DurableTask)
    made.conf.update(
        durable_auto_migrate=True,
        durable_autoretry=False,
        task_default_queue=setup.queue,
        task_send_sent_event=True,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        result_extended=True,
        result_chord_retry_interval=0.1,
        **setup.settings,
    )
    open_journal(setup.ledger)
    registry.register(made, setup.gates)
    steps.register(made)
    return made


if VARIABLE in os.environ:
    app = make_app(Setup.of_environment())
