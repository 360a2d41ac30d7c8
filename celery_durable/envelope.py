"""A run's message: taken apart for the store, put together for the broker, exactly as Celery made it."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from kombu import serialization
from kombu.exceptions import OperationalError
from kombu.utils import json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from celery import Celery
    from kombu import Producer

    from celery_durable.store.writes import Stored

HEADER = "durable-run"
"""Message header that marks a message whose run is stored; its value is the revision of the stored body."""

TIMES = {"eta": "durable-eta", "expires": "durable-expires"}
"""Message headers that tell a body what its caller asked for; Celery's own would be obeyed by the worker."""

# Where a stored message goes is fixed; when and whether it expires is the run's business, not the broker's.
_DROPPED = frozenset(
    {"retry", "retry_policy", "timeout", "confirm_timeout", "expiration", "serializer", "declare"}
)


def pack(body: Any, publish: dict[str, Any]) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return a message as stored (envelope, body) and the arguments that publish that same message now."""
    content_type, content_encoding, dumped = serialization.dumps(body, publish.get("serializer"))
    data = as_bytes(dumped)
    envelope = {name: value for name, value in publish.items() if name not in _DROPPED and value is not None}
    exchange = envelope.get("exchange")
    envelope["exchange"] = getattr(exchange, "name", exchange)
    envelope["declare"] = [
        queue.name for queue in publish.get("declare") or () if getattr(queue, "name", None)
    ]
    envelope["content_type"] = content_type
    envelope["content_encoding"] = content_encoding
    now = {name: value for name, value in publish.items() if name not in ("expiration", "serializer")}
    now.update(content_type=content_type, content_encoding=content_encoding)
    return json.dumps(envelope).encode(), data, now


def as_bytes(data: Any) -> bytes:
    """Return what a serializer made, which is text or bytes, as bytes."""
    return data.encode() if isinstance(data, str) else bytes(data)


def queue_of(publish: dict[str, Any]) -> str:
    """Return the name of the queue a message goes to, as far as its sender knows."""
    declared = publish.get("declare") or ()
    if declared:
        return str(getattr(declared[0], "name", declared[0]))
    exchange = publish.get("exchange")
    return str(publish.get("routing_key") or getattr(exchange, "name", exchange) or "")


def headers_of(message: bytes) -> dict[str, Any]:
    """Return the headers of a stored message."""
    headers: dict[str, Any] = json.loads(message)["headers"]
    return headers


def body_of(
    message: bytes, body: bytes, accept: Iterable[str]
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return positional and keyword arguments and the canvas part of a stored message."""
    envelope = json.loads(message)
    args, kwargs, embed = serialization.loads(
        body,
        envelope["content_type"],
        envelope["content_encoding"],
        accept=serialization.prepare_accept_content(list(accept)),
    )
    return args, kwargs, embed


def with_revision(message: bytes, revision: int) -> bytes:
    """Return a stored message whose header names another revision of its body."""
    envelope = json.loads(message)
    envelope["headers"][HEADER] = revision
    return json.dumps(envelope).encode()


def with_id(message: bytes, run_id: str) -> bytes:
    """Return a stored message under the id of another run that is a tree of its own."""
    envelope = json.loads(message)
    headers = envelope["headers"]
    if headers.get("root_id") == headers["id"]:
        headers["root_id"] = run_id
    headers["id"] = run_id
    if "correlation_id" in envelope:
        envelope["correlation_id"] = run_id
    return json.dumps(envelope).encode()


class Breaker:
    """Remembers that the broker is away, so that not every caller waits for it to answer.

    Arguments:
        first: seconds without a try after the first failure; each further failure doubles them.
        longest: the longest pause in seconds.
    """

    def __init__(self, first: float = 1.0, longest: float = 15.0) -> None:
        self._first, self._longest = first, longest
        self._pause = first
        self._until = 0.0
        self._lock = threading.Lock()

        # A pool child may be forked while the keeper's thread holds the lock.
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether to leave the broker alone for now."""
        return time.monotonic() < self._until

    def failed(self) -> None:
        """Note a failed publish."""
        with self._lock:
            self._until = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, self._longest)

    def worked(self) -> None:
        """Note a publish that the broker took."""
        if self._until:
            with self._lock:
                self._until, self._pause = 0.0, self._first


breaker = Breaker()


def broker_errors(producer: Producer) -> tuple[type[BaseException], ...]:
    """Return what a producer raises when the broker does not take a message."""
    connection: Any = producer.connection
    errors = tuple(connection.connection_errors) + tuple(connection.channel_errors)
    return (OperationalError, OSError, *errors)


def attempt_publish(producer: Producer, publish: Callable[[], object]) -> BaseException | None:
    """Publish; return the error when the broker did not take it, and remember that it is away."""
    try:
        publish()
    except broker_errors(producer) as error:
        breaker.failed()
        return error
    breaker.worked()
    return None


def publish_stored(app: Celery, messages: Iterable[Stored]) -> list[str]:
    """Publish stored messages; return the ids of those that the broker did not take."""
    given = list(messages)
    if not given:
        return []
    if breaker.open:
        return [one.id for one in given]
    pending = [(one, json.loads(one.message)) for one in given]
    failed: list[str] = []
    with app.producer_or_acquire() as producer:
        runs = all(HEADER in how.get("headers", ()) for _, how in pending)
        if runs and publish_together(
            producer, [partial(_publish, app, producer, one, how, retry=False) for one, how in pending]
        ):
            return []
        for one, how in pending:
            publish = partial(_publish, app, producer, one, how, retry=app.conf.task_publish_retry)
            if failed or attempt_publish(producer, publish):
                failed.append(one.id)
    return failed


def publish_together(producer: Producer, calls: Sequence[Callable[[], object]]) -> bool:
    """Publish runs' messages in one go, where the transport can; return whether the broker took all of them.

    If not, whoever publishes them one by one learns what is wrong. Some are sent twice then, and claimed
    once; a plain task would be executed twice.
    """
    if len(calls) <= 1 or not getattr(producer, "supports_batch_publish", False):
        return False
    try:
        with producer.batch():  # type: ignore[attr-defined]
            for publish in calls:
                publish()
    except Exception:  # noqa: BLE001
        return False
    breaker.worked()
    return True


def _publish(app: Celery, producer: Producer, stored: Stored, how: dict[str, Any], *, retry: bool) -> None:
    names = how.get("declare", [])
    declare = [app.amqp.queues[name] for name in names if name in app.amqp.queues]
    producer.publish(
        bytes(stored.body),
        retry=retry,
        retry_policy=app.conf.task_publish_retry_policy,
        **{**how, "declare": declare},
    )
