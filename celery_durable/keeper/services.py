"""The services, each run once: wake, publish, recover, look for lost messages, expire, retire."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.app.task import Context

from celery_durable import envelope
from celery_durable.exceptions import ExhaustedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery import Celery

    from celery_durable.keeper.deaths import DeathWatch
    from celery_durable.store.keeping import KeeperStore, Recovered, Stored

logger = logging.getLogger(__name__)

BATCH = 500
_AGAIN = timedelta(seconds=1)


def publish(app: Celery, store: KeeperStore, messages: Sequence[Stored]) -> int:
    """Publish what a service has made pending; hand back what the broker does not take."""
    failed = envelope.publish_stored(app, messages)
    if failed:
        store.unpublish(failed, _AGAIN)
    return len(messages) - len(failed)


def wake(app: Celery, store: KeeperStore) -> int:
    """Wake runs whose time has come; return how many."""
    if envelope.breaker.open:
        return 0
    woken = store.wake(BATCH)
    publish(app, store, woken)
    return len(woken)


def publish_unpublished(app: Celery, store: KeeperStore) -> int:
    """Publish runs that the broker does not know of; return how many it took."""
    if envelope.breaker.open:
        return 0
    return publish(app, store, store.publishable(BATCH))


def expire(store: KeeperStore) -> int:
    """End runs that nobody claimed before they expired; return how many."""
    return len(store.expire(BATCH))


def recover(app: Celery, store: KeeperStore, term: int, watch: DeathWatch, max_recoveries: int) -> int:
    """Bury dead workers and take over their runs; return how many runs."""
    dead = watch.observe(*store.beats())
    if dead:
        for worker in store.bury(term, dead):
            logger.warning("Worker %s has not beaten for a whole lease: its runs are recovered", worker)
    backend: Any = app.backend
    error = ExhaustedError.after("<run>", max_recoveries, "the worker was lost")
    recovered = store.recover_orphans(
        term,
        limit=BATCH,
        max_recoveries=max_recoveries,
        result=backend.error_meta(error),
        result_type=backend.content_type,
    )
    for run in recovered:
        if run.state == "failed":
            tell_failure(app, run, ExhaustedError.after(run.id, max_recoveries, "the worker was lost"))
    return len(recovered)


def report_failures(app: Celery, store: KeeperStore) -> int:
    """Tell error callbacks of failed runs whose worker died before it could; return how many."""
    backend: Any = app.backend
    unreported = store.unreported(BATCH)
    for run in unreported:
        error = backend.exception_to_python(backend.decoded(run.result, run.result_type))
        tell_failure(app, run, error or ExhaustedError())
    return len(unreported)


def tell_failure(app: Celery, run: Recovered, error: Exception) -> None:
    """Do for a run that failed without a worker what its worker would have done: errbacks, chain, chord."""
    backend: Any = app.backend
    try:
        args, kwargs, embed = envelope.body_of(run.message, run.body, app.conf.accept_content)
        request = Context(envelope.headers_of(run.message), args=args, kwargs=kwargs, **embed)
        setattr(request, envelope.HEADER, 0)
        backend.mark_as_failure(run.id, error, request=request)
    except Exception:
        logger.exception("Run %s failed; its error callbacks could not be called", run.id)
    finally:
        backend.store.runs.reported(run.id)


def publish_outbox(app: Celery, store: KeeperStore, age: timedelta = timedelta(seconds=10)) -> int:
    """Publish links to plain tasks whose sender died before it could; return how many."""
    waiting = store.outbox(age=age, limit=BATCH)
    failed = set(envelope.publish_stored(app, [stored for _, stored in waiting]))
    sent = [key for key, stored in waiting if stored.id not in failed]
    if sent:
        store.outbox_done(sent)
    return len(sent)
