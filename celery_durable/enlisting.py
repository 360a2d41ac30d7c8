"""Runs stored in a transaction of the caller's: they come and go with it, their messages follow."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from celery.canvas import chord

from celery_durable import envelope
from celery_durable.exceptions import TransactionUsageError
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from celery_durable.store import Store
    from celery_durable.store.callers.transaction import CallersTransaction
    from celery_durable.store.writes import NewRun

logger = logging.getLogger(__name__)

_NOTE = "celery_durable"


@dataclass
class Unsent:
    """What one transaction has stored and nobody has sent yet.

    Attributes:
        transaction: its id in the database.
        messages: the messages of the runs.
        events: what else was to be sent with a run (`task-sent`), by the run's id.
    """

    app: Celery
    store: Store
    transaction: str
    messages: list[Stored] = field(default_factory=list)
    events: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    def send(self) -> None:
        """Send what has been committed; nothing that goes wrong here is the caller's: the keeper sends it.

        What came of the transaction, and of the savepoints in it, the database knows best.
        """
        messages, self.messages = self.messages, []
        events, self.events = self.events, []
        if not messages:
            return
        try:
            committed = self.store.callers.committed([one.id for one in messages])
            failed = envelope.publish_stored(self.app, [one for one in messages if one.id in committed])
            sent = committed.difference(failed)
            self._send_events([event for event in events if event[0] in sent])
            if sent:
                self.store.callers.published(sorted(sent))
        except Exception:
            logger.exception("Runs stored in a transaction are not sent yet: the keeper sends them")

    def _send_events(self, events: list[tuple[str, Any, dict[str, Any]]]) -> None:
        if events:
            with self.app.producer_or_acquire() as producer:
                for _, body, publish in events:
                    envelope.attempt_publish(producer, lambda b=body, p=publish: producer.publish(b, **p))  # type: ignore[misc]


class Enlistment:
    """One `apply_async` within a transaction.

    Arguments:
        app: the Celery app.
        store: its store.
        transaction: the caller's transaction.
    """

    def __init__(self, app: Celery, store: Store, transaction: CallersTransaction) -> None:
        self._app, self._store, self._transaction = app, store, transaction
        self._unsent: Unsent | None = None
        self._run: str | None = None

    def store_run(self, run: NewRun) -> None:
        """Store the run; raise `TransactionUsageError` when the transaction is of another database."""
        within = self._store.callers.enqueue_within(self._transaction, run)
        self._run = run.id
        if self._transaction.notes is not None:
            self._unsent = self._noted(self._transaction.notes, within.transaction)
            self._unsent.messages.append(Stored(run.id, run.message, run.body))
            self._transaction.when_over(self._unsent.send)

    def send_later(self, body: Any, publish: dict[str, Any]) -> None:
        """Keep what accompanies the run's message (an event) until after the commit."""
        if self._unsent is not None and self._run is not None:
            self._unsent.events.append((self._run, body, publish))

    def _noted(self, notes: Any, transaction: str) -> Unsent:
        """Return what the transaction has stored so far; another one's is over, and to be sent now."""
        by_app: dict[int, Unsent] = notes.setdefault(_NOTE, {})
        unsent = by_app.get(id(self._app))
        if unsent is None or unsent.transaction != transaction:
            if unsent is not None:
                unsent.send()
            unsent = by_app[id(self._app)] = Unsent(self._app, self._store, transaction)
        return unsent


def _refusing(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply_async)
    def checked(self: Any, *args: Any, **options: Any) -> Any:
        if options.get("transaction") is not None:
            message = "A chord takes no transaction=: start it from a durable task that is given one"
            raise TransactionUsageError(message)
        return apply_async(self, *args, **options)

    checked.refuses_transactions = True  # type: ignore[attr-defined]
    return checked


def refuse_chords() -> None:
    """Have a chord say that it takes no transaction: what counts its parts is stored beside it."""
    apply_async: Any = chord.apply_async
    if not getattr(apply_async, "refuses_transactions", False):
        chord.apply_async = _refusing(apply_async)  # type: ignore[method-assign]
