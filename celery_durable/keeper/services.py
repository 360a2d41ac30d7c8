"""The services, each run once: wake, publish, expire, tell endings, look at chords, empty the outbox."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from celery_durable import envelope, texts
from celery_durable.exceptions import ExhaustedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from celery_durable.store.keeping import KeeperStore, Recovered
    from celery_durable.store.writes import Stored

logger = logging.getLogger(__name__)

BATCH = 500
_SMALLEST = 50
_LASTS = 0.25  # seconds that a batch is to take: whatever comes due meanwhile waits for the next one
_PARENTS = 2000
_AGAIN = timedelta(seconds=1)


def publish(app: Celery, store: KeeperStore, messages: Sequence[Stored]) -> int:
    """Publish what a service has made pending; hand back what the broker does not take."""
    failed = envelope.publish_stored(app, messages)
    if failed:
        store.unpublish(failed, _AGAIN)
    return len(messages) - len(failed)


def next_batch(done: int, seconds: float) -> int:
    """Return how many to take next, after a batch of `done` took so long: a slow broker gets fewer."""
    return max(_SMALLEST, min(BATCH, int(done * _LASTS / max(seconds, 1e-3))))


def wake(app: Celery, store: KeeperStore, limit: int = BATCH) -> int:
    """Wake runs whose time has come; return how many."""
    if envelope.breaker.open:
        return 0
    woken = store.wake(limit)
    publish(app, store, woken)
    return len(woken)


def publish_unpublished(app: Celery, store: KeeperStore, limit: int = BATCH) -> int:
    """Publish runs that the broker does not know of; return how many it took."""
    if envelope.breaker.open:
        return 0
    return publish(app, store, store.publishable(limit))


def wake_parents(app: Celery, store: KeeperStore, after: int) -> tuple[int, int]:
    """Wake runs whose children are over and whom nobody has woken, and children whose slot is free.

    Looks at one batch of parents; returns how many runs go on, and where the next batch begins.
    """
    parents = store.parents(after, _PARENTS)
    woken = [
        stored
        for parent in parents
        if parent.ready or parent.abreast is not None
        for stored in store.wake_parent(parent)
    ]
    publish(app, store, woken)
    return len(woken), parents[-1].key if len(parents) == _PARENTS else 0


def enforce_deadlines(store: KeeperStore, limit: int = BATCH) -> int:
    """Cancel runs that are not over at their deadline; return how many."""
    overdue = store.overdue(limit)
    if overdue:
        store.cancel(overdue, cause="deadline", reason="its deadline has passed")
    return len(overdue)


def cascade(store: KeeperStore) -> int:
    """Cancel children of cancelled runs, and theirs; return how many."""
    total = 0
    while found := store.cascade(BATCH, reason="its parent was cancelled"):
        total += found
    return total


def expire(store: KeeperStore) -> int:
    """End runs that nobody claimed before they expired; return how many."""
    return len(store.expire(BATCH))


def report_endings(app: Celery, store: KeeperStore) -> int:
    """Tell whom failed and cancelled runs concern, where their worker could not; return how many."""
    unreported = store.unreported(BATCH)
    for run in unreported:
        tell_ending(app, run)
    return len(unreported)


def tell_ending(app: Celery, run: Recovered) -> None:
    """Do for a run that ended without a worker what its worker would have done: errbacks, chain, chord."""
    backend: Any = app.backend
    problem = None
    try:
        args, kwargs, embed = envelope.body_of(run.message, run.body, app.conf.accept_content)
        request = Context(envelope.headers_of(run.message), args=args, kwargs=kwargs, **embed)
        request.durable = True  # type: ignore[attr-defined]
        if run.state == "cancelled":
            backend.mark_as_revoked(run.id, run.reason or "", request=request, store_result=False)
        else:
            error = backend.exception_to_python(backend.decoded(run.result, run.result_type))
            backend.mark_as_failure(run.id, error or ExhaustedError(), request=request)
    except StoreUnavailableError:
        raise
    except Exception as failed:  # it would fail again: noted with the run, for an operator
        logger.exception("Run %s ended; whom it concerns could not be told", run.id)
        problem = texts.line(failed)
    backend.store.runs.reported(run.id, problem)


def look_at_chords(app: Celery, store: KeeperStore) -> int:
    """Start the bodies of complete chords whose last part was followed up by nobody; return how many."""
    backend: Any = app.backend
    return sum(backend.look_at_chord(chord) for chord in store.open_chords(BATCH))


def grant_slots(app: Celery, store: KeeperStore, after: str) -> tuple[int, str, float | None]:
    """Wake runs that wait for a slot, of a batch of keys.

    Returns how many, the key to go on from, and in how many seconds one opens that a rate keeps closed.
    """
    if envelope.breaker.open:
        return 0, after, None
    room = store.slots_with_room(after, BATCH)
    woken = [publish(app, store, store.grant(key)) for key in room.keys]
    return sum(woken), room.last or "", room.opens_in


def publish_outbox(app: Celery, store: KeeperStore, age: timedelta = timedelta(seconds=10)) -> int:
    """Publish links to plain tasks whose sender died before it could; return how many."""
    waiting = store.outbox(age=age, limit=BATCH)
    failed = set(envelope.publish_stored(app, [stored for _, stored in waiting]))
    sent = [key for key, stored in waiting if stored.id not in failed]
    if sent:
        store.outbox_done(sent)
    return len(sent)
