"""The app under test: the same in the test process and, through one environment variable, in its workers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from celery import Celery

import celery_durable as durable
from harness import tasks
from harness.ledger import Gates, Ledger

VARIABLE = "DURABLE_HARNESS"


@dataclass(frozen=True)
class Setup:
    """Everything a process needs to know to take part in a test.

    Attributes:
        broker: its URL.
        backend: the URL of the store.
        folder: where ledger, gates and logs are.
        queue: the default queue, one per test.
        settings: Celery settings beside these.
    """

    broker: str
    backend: str
    folder: str
    queue: str = "celery"
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_environment(cls) -> Setup:
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def ledger(self) -> Ledger:
        return Ledger(Path(self.folder) / "ledger")

    @property
    def gates(self) -> Gates:
        return Gates(Path(self.folder) / "gates")

    def app(self) -> Celery:
        """Return a new app with the harness' tasks."""
        app = Celery("harness", broker=self.broker, backend=self.backend, task_cls=durable.DurableTask)
        app.conf.update(
            durable_auto_migrate=True,
            task_default_queue=self.queue,
            broker_connection_retry_on_startup=True,
            worker_prefetch_multiplier=1,
            worker_hijack_root_logger=False,
            worker_send_task_events=False,
            **self.settings,
        )
        tasks.register(app, self.ledger, self.gates)
        return app
