"""The app: a task that notes in the ledger when it starts and ends, and waits at a gate in between."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from celery import Celery, Task
from harness.setup import VARIABLE, Setup
from harness.waiting import take

from celery_durable import transport

if TYPE_CHECKING:
    from collections.abc import Mapping

transport.register()


class MessagingSetup(Setup):
    """A setup whose tasks are Celery's own."""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> MessagingSetup:  # type: ignore[override]
        return cls(**json.loads(environment[VARIABLE]))

    def app(self) -> Celery:
        app = Celery("messaging", broker=self.broker, set_as_current=False)
        app.conf.update(
            task_default_queue=self.queue,
            task_ignore_result=True,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            broker_connection_retry_on_startup=True,
            worker_hijack_root_logger=False,
        )
        app.conf.update(self.settings)
        ledger, gates = self.ledger, self.gates

        @app.task(name="handle", bind=True, shared=False)
        def handle(self: Task, name: str) -> None:
            detail = bool(self.request.delivery_info.get("redelivered"))
            with ledger.recorded(name, self.request.hostname, detail):
                gates.pass_through(name)
                take(0.02)

        return app
