"""Runs are stored and then sent: each at once, or the members of a group in batches."""

from __future__ import annotations

import inspect
import time
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from celery.canvas import group

from celery_durable import envelope
from celery_durable.store.bulk import BYTES, ROWS
from celery_durable.store.posting import Post
from celery_durable.transport import capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.store import Store
    from celery_durable.store.messages import NewMessage
    from celery_durable.store.writes import NewRun

T = TypeVar("T")

_LINGER = 0.1  # seconds: the members of a group that is made slowly do not wait for the others
_AT_ONCE = 8  # members behind one that was slow to make: Celery makes two more than it sends


@dataclass(frozen=True)
class Outgoing:
    """A run that is not stored yet, and the arguments that publish its message."""

    run: NewRun
    publish: dict[str, Any]


def store_and_send(store: Store, producer: Producer, outgoing: Sequence[Outgoing]) -> None:
    """Store runs, then publish their messages; where the broker is the same database, all in one commit."""
    runs = [one.run for one in outgoing]
    if not capture.goes_to(producer, store.identity):
        send(store, producer, outgoing, store.runs.enqueue_bulk(runs))
        return
    with capture.capturing(store.identity) as caught:
        posts = [
            Post(one.run.id, caught[-1])
            for one in outgoing
            if one.run.publish and _captured(producer, one, caught)
        ]
    states, queues = store.posting.enqueue(runs, posts)
    posted = {post.run for post in posts if post.message.queue in queues}
    left = [(one, state) for one, state in zip(outgoing, states, strict=True) if one.run.id not in posted]
    if left:
        send(store, producer, *zip(*left, strict=True))


def _captured(producer: Producer, one: Outgoing, caught: list[NewMessage]) -> bool:
    """Have a message made as it would be sent; return whether it was not sent, but caught."""
    before = len(caught)
    if one.publish.get("exchange"):  # it may lead anywhere, and only the broker's bindings tell
        return False
    envelope.attempt_publish(producer, partial(producer.publish, **one.publish))
    return len(caught) > before


def send(
    store: Store, producer: Producer, outgoing: Sequence[Outgoing], states: Sequence[str | None]
) -> None:
    """Publish the messages of runs just stored; what the broker does not take is the keeper's.

    With `durable_publish_errors = "raise"` the runs whose messages were not taken are forgotten and the error
    is raised.
    """
    stored = dict(zip((one.run.id for one in outgoing), states, strict=True))
    # A row that was there already may be this very call's, if its first answer was lost.
    known = [run_id for run_id, state in stored.items() if state is None]
    pending = {run_id for run_id, state in stored.items() if state == "pending"}
    if known:
        pending |= store.runs.unclaimed(known)
    due: dict[str, Outgoing] = {}
    for one in outgoing:
        if one.run.id in pending and one.run.publish:
            due.setdefault(one.run.id, one)
    error = None
    try:
        # Not where the caller is told what was not taken: it has to be known of each.
        if store.settings.publish_errors != "raise" and envelope.publish_together(
            producer, [partial(producer.publish, **{**one.publish, "retry": False}) for one in due.values()]
        ):
            due.clear()
        while due and error is None:
            run_id, one = next(iter(due.items()))
            error = envelope.attempt_publish(producer, partial(producer.publish, **one.publish))
            if error is None:
                del due[run_id]
    finally:
        if due:
            _not_taken(store, error, due, new=stored.keys() - known)
    if error is not None and store.settings.publish_errors == "raise":
        raise error


def _not_taken(store: Store, error: BaseException | None, due: Iterable[str], *, new: set[str]) -> None:
    """Forget runs that the caller is told of, hand the others to the keeper."""
    left = list(due)
    if error is not None and store.settings.publish_errors == "raise":
        store.runs.withdraw([run_id for run_id in left if run_id in new])
    else:
        store.runs.unpublish(left, timedelta(0))


_batch: ContextVar[Batch | None] = ContextVar("celery_durable_batch", default=None)


class Batch:
    """Members of a group between their `apply_async` and the store.

    Arguments:
        app: the group's app.
        producer: who publishes them; it must live as long as the batch.
    """

    def __init__(self, app: Celery, producer: Producer) -> None:
        self.app = app
        self._producer = producer
        self._store: Store | None = None
        self._waiting: list[Outgoing] = []
        self._size = 0
        self._since = 0.0
        self.at_once = 0

    def add(self, store: Store, one: Outgoing) -> None:
        """Take a member; store and send those that wait when they are enough, or have waited long enough."""
        if self._size + len(one.run.body) > BYTES:
            self.flush()
        self._store = store
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting.append(one)
        self._size += len(one.run.body)
        if len(self._waiting) == ROWS or self.at_once or time.monotonic() - self._since > _LINGER:
            self.flush()

    def flush(self) -> None:
        """Store and send what waits."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        if waiting and self._store is not None:
            store_and_send(self._store, self._producer, waiting)


def current(app: Celery) -> Batch | None:
    """Return the batch of the group that is being applied here, if it is one of this app."""
    batch = _batch.get()
    return batch if batch is not None and batch.app is app else None


def _advanced(iterable: Iterable[T], batch: Batch | None) -> Iterator[T]:
    """Iterate with `batch` as the current one, only while `iterable` itself is at work."""
    iterator = iter(iterable)
    while True:
        token = _batch.set(batch)
        try:
            one = next(iterator)
        except StopIteration:
            return
        finally:
            _batch.reset(token)
        yield one


def _made(tasks: Iterable[T], batch: Batch) -> Iterator[T]:
    """Iterate over the members, and note whether it takes long to make one: none is to wait for it."""
    iterator = _advanced(tasks, None)
    while True:
        began = time.monotonic()
        try:
            one = next(iterator)
        except StopIteration:
            return
        slow = time.monotonic() - began > _LINGER
        batch.at_once = _AT_ONCE if slow else max(0, batch.at_once - 1)
        yield one


def _in_batches(apply_tasks: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
    """Return Celery's loop over a group's members with a batch around it.

    Only that loop's own calls are batched: not what makes the members does, nor whoever takes the results.
    """

    @wraps(apply_tasks)
    def _apply_tasks(
        self: group, tasks: Iterable[Any], producer: Any = None, app: Any = None, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        app = app or self.app
        with app.producer_or_acquire(producer) as own:
            batch = Batch(app, own)
            try:
                members = apply_tasks(self, _made(tasks, batch), own, app, *args, **kwargs)
                yield from _advanced(members, batch)
            finally:  # also for the members in front of one that raised
                with own.connection._reraise_as_library_errors():  # noqa: SLF001  (as Celery does for each)
                    batch.flush()

    _apply_tasks.in_batches = True  # type: ignore[attr-defined]
    return _apply_tasks


def batch_groups() -> None:
    """Have the members of every group stored in batches; where Celery's loop is another one, each alone."""
    apply_tasks: Any = getattr(group, "_apply_tasks", None)
    if getattr(apply_tasks, "in_batches", False) or not inspect.isgeneratorfunction(apply_tasks):
        return
    if list(inspect.signature(apply_tasks).parameters)[:4] == ["self", "tasks", "producer", "app"]:
        group._apply_tasks = _in_batches(apply_tasks)  # type: ignore[attr-defined]  # noqa: SLF001
