"""A world of one worker that has the harness' tasks and the odd ones."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import brokers, postgres
from harness.setup import Setup
from harness.world import World

from oddities import replacing, tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

MAX_PAYLOAD = 100_000


@dataclass(frozen=True)
class OddSetup(Setup):
    """The harness' app with more tasks."""

    def app(self) -> Celery:
        app = super().app()
        tasks.register(app, self.ledger)
        replacing.register(app, self.ledger)
        return app


@contextmanager
def odd_world(postgres_url: str, broker: str, **settings: Any) -> Iterator[World]:
    """Yield a world without a worker. Nobody looks for lost messages: what is not sent never arrives."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="durable-oddities-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(postgres.fresh_database(postgres_url))
        queue, apart = stack.enter_context(brokers.queue_of_ones_own(broker))
        chosen = {
            "accept_content": ["json", tasks.LITERAL],
            "result_extended": True,
            "durable_max_payload": MAX_PAYLOAD,
            "durable_max_recoveries": 1,
            "durable_check_interval": 600.0,
            **apart,
            **settings,
        }
        world = World(OddSetup(broker, f"durable+{url}", folder, queue, chosen), url)
        stack.callback(world.leave)
        yield world
