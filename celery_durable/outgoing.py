"""Row first, message second: what stands between Celery's sender and the broker."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery.utils.time import maybe_make_aware

from celery_durable import batching, chains, envelope, slots
from celery_durable.exceptions import (
    ConfigurationError,
    PayloadTooLargeError,
    RunStateError,
    TransactionUsageError,
)
from celery_durable.store.writes import NewRun, PlainMessage, Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.enlisting import Enlistment
    from celery_durable.store import Store
    from celery_durable.store.writes import Key, NewChain, Slot


@dataclass(frozen=True)
class Schedule:
    """When a run may start, until when it must have, and when it is stopped; never part of its message."""

    countdown: timedelta | None = None
    eta: datetime | None = None
    expires: timedelta | None = None
    expires_at: datetime | None = None
    deadline: timedelta | None = None
    deadline_at: datetime | None = None

    @classmethod
    def taken_from(
        cls, app: Celery, options: dict[str, Any], default_expires: Any, default_deadline: Any = None
    ) -> Schedule:
        """Take countdown, eta, expires and deadline out of a caller's options."""
        countdown, eta = options.pop("countdown", None), options.pop("eta", None)
        expires, expires_at = _span_or_moment(app, "expires", options.pop("expires", default_expires))
        moment = _span_or_moment(app, "eta", eta)[1] if eta is not None else None
        span = _span("countdown", countdown) if countdown and moment is None else None
        until = options.pop("deadline", default_deadline)
        deadline, deadline_at = _span_or_moment(app, "deadline", until)
        return cls(span, moment, expires, expires_at, deadline, deadline_at)

    def told(self, app: Celery) -> dict[str, str]:
        """Return, as message headers, what a body may read: by the caller's clock, and obeyed by nobody."""
        now = app.now() if self.countdown or self.expires else None
        eta = self.eta if now is None or self.countdown is None else now + self.countdown
        expires = self.expires_at if now is None or self.expires is None else now + self.expires
        times = {"eta": eta, "expires": expires}
        return {envelope.TIMES[name]: moment.isoformat() for name, moment in times.items() if moment}


def _span_or_moment(app: Celery, name: str, value: Any) -> tuple[timedelta | None, datetime | None]:
    if value is None:
        return None, None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError as error:
            message = f"{name}={value!r} is no moment such as '2026-01-31T12:00:00Z'"
            raise ConfigurationError(message) from error
    if isinstance(value, datetime):
        return None, maybe_make_aware(value, app.timezone)
    return _span(name, value), None


def _span(name: str, value: Any) -> timedelta:
    if isinstance(value, bool):
        message = f"{name}={value!r} is no number of seconds, timedelta or datetime"
        raise ConfigurationError(message)
    try:
        return value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except (TypeError, ValueError, OverflowError) as error:
        message = f"{name}={value!r} is no number of seconds, timedelta or datetime ({error})"
        raise ConfigurationError(message) from error


@dataclass
class Collected:
    """Messages caught on their way out, to be stored with another write."""

    run_id: str
    messages: list[NewRun | PlainMessage] = field(default_factory=list)
    successor: NewRun | None = None
    everything: bool = False


_collecting: ContextVar[Collected | None] = ContextVar("celery_durable_collecting", default=None)


@contextmanager
def collecting(run_id: str, everything_of: Celery | None = None) -> Iterator[Collected]:
    """Catch the message that goes out under `run_id` (a retry), or every message that an app sends."""
    if everything_of is not None:
        watch(everything_of)
    collected = Collected(run_id, everything=everything_of is not None)
    token = _collecting.set(collected)
    try:
        yield collected
    finally:
        _collecting.reset(token)


def watch(app: Celery) -> None:
    """Let no message of the app get past a collection: canvas does not hand a producer on everywhere.

    Nor a message of a plain task that was to be part of a transaction, as a member of a group.
    """
    amqp: Any = app.amqp
    send = amqp.send_task_message
    if getattr(send, "watched", False):
        return

    def send_task_message(producer: Any, *args: Any, **options: Any) -> Any:
        if "transaction" in options:
            message = (
                f"{args[0]} is no durable task, so its message cannot wait for a transaction: give it the "
                f"base DurableTask, or send it after the commit"
            )
            raise TransactionUsageError(message)
        collected = _collecting.get()
        if collected is not None and not isinstance(producer, StoringProducer):
            producer = StoringProducer(app, producer, None)
        return send(producer, *args, **options)

    send_task_message.watched = True  # type: ignore[attr-defined]
    amqp.send_task_message = send_task_message


class StoringProducer:
    """A producer that stores a run before it publishes the run's message.

    Arguments:
        app: the Celery app.
        producer: the producer that talks to the broker; everything but `publish` is its own.
        schedule: when the run is due, or None for a task that has no run.
        enlistment: the caller's transaction that is to store the run, which then sends the message, too.
        key: a key that may stand for another run already.
        slot: what the run shares with others, None for a run that needs no slot.

    Attributes:
        instead: the id of that other run.
    """

    def __init__(
        self,
        app: Celery,
        producer: Producer,
        schedule: Schedule | None,
        *,
        enlistment: Enlistment | None = None,
        key: Key | None = None,
        slot: Slot | None = None,
    ) -> None:
        self.instead: str | None = None
        self._app = app
        self._producer = producer
        self._schedule = schedule
        self._enlistment = enlistment
        self._key = key
        self._slot = slot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **publish: Any) -> Any:
        """Store and publish a task message; pass anything else (events) on."""
        headers = publish.get("headers") or {}
        if "task" not in headers or "id" not in headers:
            if self._enlistment is not None:
                return self._enlistment.send_later(body, publish)
            return self._producer.publish(body, **publish)
        if self._schedule is None:
            return self._publish_plain(body, publish)
        headers.setdefault(envelope.HEADER, 0)
        headers.update(self._schedule.told(self._app))
        if self._slot is not None:
            headers[slots.HEADER] = True
        collected = _collecting.get()
        again = collected is not None and headers["id"] == collected.run_id
        body, new_chains = self._with_references(body, publish, keep=self._enlistment is None and not again)
        message, data, now = envelope.pack(body, publish)
        self._check_size(f"The arguments of {headers['task']}", data)
        run = self._new_run(headers, publish, message, data, new_chains)
        if self._enlistment is not None:
            self._enlistment.store_run(run)
        elif collected is not None and again:
            self._refuse_key_of_child(run)
            collected.successor = run
        elif collected is not None and collected.everything:
            collected.messages.append(run)
        else:
            self._store_and_send(batching.Outgoing(run, {"body": data, **now}), _followers(headers, body))
        return None

    def _refuse_key_of_child(self, run: NewRun) -> None:
        if self._key is not None and self._key.kind != "singleton":
            message = (
                f"{run.task}: the child of a run has an id of its own, so its {self._key.kind} key could "
                f"stand for nobody else; start it with apply_async in the body, which looks at keys"
            )
            raise ConfigurationError(message)

    def _with_references(
        self, body: Any, publish: dict[str, Any], *, keep: bool
    ) -> tuple[Any, tuple[NewChain, ...]]:
        """Return a message's body with long chains taken out of it, and these."""
        if not isinstance(body, tuple):  # Celery's old message protocol knows no chain
            return body, ()
        args, kwargs, embed = body
        if self._key is not None:  # the body may become another run's, of another tree
            return (args, kwargs, chains.whole(self._app, embed)), ()
        headers = publish["headers"]
        embed, new = chains.referring(
            self._app,
            embed,
            root=headers.get("root_id") or headers["id"],
            serializer=publish.get("serializer"),
            keep=keep,
        )
        for link in (link for chain in new for link in chain.links):
            self._check_size(f"The arguments of a task in the chain behind {headers['task']}", link)
        return (args, kwargs, embed), new

    def _store_and_send(self, one: batching.Outgoing, followers: str) -> None:
        if self._key is not None:
            self._store_once(one, self._key, followers)
        elif (batch := batching.current(self._app)) is not None:
            batch.add(self._store, one)
        else:
            batching.store_and_send(self._store, self._producer, [one])

    def _store_once(self, one: batching.Outgoing, key: Key, followers: str) -> None:
        run = one.run
        if key.kind == "debounce" and run.group is not None:
            message = (
                f"{run.task}: a member of a group or chord cannot be debounced: it is one of several runs"
            )
            raise ConfigurationError(message)
        holder, state = self._store.once.enqueue(run, key, lambda other: envelope.with_id(run.message, other))
        if holder == run.id:
            batching.send(self._store, self._producer, [one], [state])
        elif followers and key.kind != "debounce":  # that one has this call's message now
            message = (
                f"{run.task}: the {key.kind} key {key.key!r} stands for the run {holder}, so this call "
                f"starts none, and {followers} would wait for ever. Call it alone, or in a task of its own"
            )
            raise RunStateError(message, run_id=holder)
        else:
            self.instead = holder

    def _publish_plain(self, body: Any, publish: dict[str, Any]) -> Any:
        collected = _collecting.get()
        if collected is None or not (collected.everything or publish["headers"]["id"] == collected.run_id):
            return self._producer.publish(body, **publish)
        if isinstance(body, tuple):
            args, kwargs, embed = body
            body = (args, kwargs, chains.whole(self._app, embed))
        message, data, _ = envelope.pack(body, publish)
        collected.messages.append(PlainMessage(publish["headers"]["id"], message, data))
        return None

    def _check_size(self, what: str, body: bytes) -> None:
        limit = self._store.settings.max_payload
        if len(body) > limit:
            message = (
                f"{what} are {len(body):,} bytes; durable_max_payload is {limit:,}. "
                f"Pass a path, a URL or an id instead"
            )
            raise PayloadTooLargeError(message, size=len(body), limit=limit)

    def _new_run(
        self,
        headers: dict[str, Any],
        publish: dict[str, Any],
        message: bytes,
        body: bytes,
        new_chains: tuple[NewChain, ...],
    ) -> NewRun:
        schedule = self._schedule or Schedule()
        return NewRun(
            id=headers["id"],
            task=headers["task"],
            queue=envelope.queue_of(publish),
            priority=publish.get("priority"),
            message=message,
            body=body,
            parent=headers.get("parent_id"),
            root=headers.get("root_id"),
            group=headers.get("group"),
            version=self._store.settings.version,
            countdown=schedule.countdown,
            eta=schedule.eta,
            expires=schedule.expires,
            expires_at=schedule.expires_at,
            deadline=schedule.deadline,
            deadline_at=schedule.deadline_at,
            # Whoever wants to hear of a broker that is away has to wait for it to answer, every time.
            publish=not envelope.breaker.open or self._store.settings.publish_errors == "raise",
            slot=self._slot and replace(self._slot, rank=slots.rank(self._producer, publish.get("priority"))),
            chains=new_chains,
        )

    @property
    def _store(self) -> Store:
        backend: Any = self._app.backend
        store: Store = backend.store
        return store


def _followers(headers: dict[str, Any], body: Any) -> str:
    """Say what waits for the very run of this message; nothing does for most."""
    if headers.get("group"):
        return "its group"
    embed = body[2] if isinstance(body, tuple) else {}
    if embed.get("chord"):
        return "its chord"
    if embed.get("chain"):
        return "the rest of its chain"
    return "its link" if embed.get("callbacks") else ""


def send_collected(
    app: Celery, store: Store, messages: list[NewRun | PlainMessage], states: list[str | None]
) -> None:
    """Publish what a finish has stored; what the broker does not take is the keeper's."""
    now = [
        Stored(one.id, one.message, one.body)
        for one, state in zip(messages, states, strict=True)
        if state is not None and (isinstance(one, PlainMessage) or state == "pending")
    ]
    failed = set(envelope.publish_stored(app, now))
    runs = [one.id for one in messages if isinstance(one, NewRun) and one.id in failed]
    if runs:
        store.runs.unpublish(runs, timedelta(0))
    sent = [
        int(state)
        for one, state in zip(messages, states, strict=True)
        if isinstance(one, PlainMessage) and state is not None and one.id not in failed
    ]
    if sent:
        store.runs.outbox_done(sent)


def send_stored(app: Celery, store: Store, messages: Sequence[Stored]) -> None:
    """Publish messages of runs that count as published; what the broker does not take is the keeper's."""
    if failed := envelope.publish_stored(app, messages):
        store.runs.unpublish(failed, timedelta(0))
