"""Which messages are lost: published, not claimed, and not merely far back in a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable.envelope import breaker, broker_errors

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from celery import Celery

    from celery_durable.store.keeping import KeeperStore, Unclaimed
    from celery_durable.store.writes import Stored

_BATCH = 200


@dataclass(frozen=True)
class Evidence:
    """What is known of one queue and priority.

    Attributes:
        claimed_up_to: a run published then was claimed a while ago; earlier ones should have come first.
        empty_since: the broker has no ready message, and no live worker has held an unstarted one since.
    """

    claimed_up_to: datetime | None
    empty_since: datetime | None


def presumed_lost(run: Unclaimed, evidence: Evidence, lost_after: timedelta) -> bool:
    """Decide on one run's message. A backlog is never published again; a hole in it is."""
    if run.now - run.published_at >= lost_after:
        return True
    if evidence.claimed_up_to is not None and evidence.claimed_up_to > run.published_at:
        return True
    return evidence.empty_since is not None and evidence.empty_since > run.published_at


def find_lost(app: Celery, store: KeeperStore, *, lost_after: timedelta, grace: timedelta) -> list[Stored]:
    """Judge one batch of unclaimed messages; return those to be published again."""
    runs = store.unclaimed(_BATCH)
    queues = {(run.queue, run.priority) for run in runs}
    known = {place: _evidence(app, store, *place, grace) for place in queues}
    verdicts = {run.id: presumed_lost(run, known[run.queue, run.priority], lost_after) for run in runs}
    return store.recheck(verdicts) if verdicts else []


def _evidence(
    app: Celery, store: KeeperStore, queue: str, priority: int | None, grace: timedelta
) -> Evidence:
    reserved, oldest = store.reservations()
    empty = reserved == 0 and _ready_messages(app, queue) == 0
    return Evidence(
        claimed_up_to=store.claimed_up_to(queue, priority, grace),
        empty_since=oldest if empty else None,
    )


def _ready_messages(app: Celery, queue: str) -> int | None:
    """Return how many messages wait in a queue; None when the broker does not say."""
    if breaker.open:
        return None
    with app.producer_or_acquire() as producer:
        try:
            with producer.connection.channel() as channel:
                if hasattr(channel, "has_messages"):  # a broker of ours, where to count is to read them all
                    return int(channel.has_messages(queue))
                declared = channel.queue_declare(queue=queue, passive=True)
        except broker_errors(producer) as error:
            if "NOT_FOUND" in str(error):
                return 0  # nobody declared it again since the broker lost it
            breaker.failed()
            return None
        except Exception:  # noqa: BLE001  (transports differ in what they raise for a queue that is not there)
            return 0
    return int(declared.message_count)
