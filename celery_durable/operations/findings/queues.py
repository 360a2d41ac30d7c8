"""The queues of a Postgres broker: what nobody consumes, and what came back too often."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from celery_durable.operations.findings.finding import Finding
from celery_durable.operations.wording import span
from celery_durable.store.messages import DEAD

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery_durable.store.messages import QueueView

_PATIENCE = 60.0  # seconds that a message may wait for a worker to start


def about_queues(queues: Sequence[QueueView]) -> Iterator[Finding]:
    """Return what is wrong with queues, or that nothing is."""
    lasting = [queue for queue in queues if queue.expires is None]
    dead = [queue for queue in lasting if queue.name.endswith(DEAD) and queue.ready]
    forgotten = [
        queue
        for queue in lasting
        if queue not in dead and not queue.consumers and (queue.waiting or 0.0) > _PATIENCE
    ]
    for queue in dead:
        name = queue.name.removesuffix(DEAD)
        yield Finding(
            "queues",
            "warning",
            f"{queue.ready} messages of {name} came back too often and are in {queue.name}",
            f"Find out what they do to their workers, then: "
            f"celery -A <app> durable queues --redrive {quote(name)}",
        )
    for queue in forgotten:
        yield Finding(
            "queues",
            "warning",
            f"{queue.ready} messages wait in {queue.name}, the oldest for {span(queue.waiting or 0.0)}; "
            f"nobody consumes it",
            f"Start a worker with -Q {quote(queue.name)}, or delete them: "
            f"celery -A <app> purge -Q {quote(queue.name)}",
        )
    if not dead and not forgotten:
        ready, held = sum(queue.ready for queue in queues), sum(queue.held for queue in queues)
        yield Finding("queues", "ok", f"{ready} messages wait, {held} are with consumers")
