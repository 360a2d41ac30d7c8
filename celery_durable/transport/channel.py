"""kombu's channel on Postgres: exchanges and queues, publishing, and messages on their way to a consumer."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError, OperationalError
from kombu.transport import base, virtual
from kombu.utils.encoding import bytes_to_str, str_to_bytes
from kombu.utils.json import dumps, loads
from kombu.utils.uuid import uuid

from celery_durable.store.messages import Binding, NewMessage
from celery_durable.store.patience import PASSING, first_line
from celery_durable.transport import capture
from celery_durable.transport.batch import PublishBatch
from celery_durable.transport.fetcher import Subscription
from celery_durable.transport.qos import PostgresQoS
from celery_durable.transport.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.consuming import Claimed, Delivery
    from celery_durable.store.messages import MessageStore
    from celery_durable.transport.fetcher import Fetcher

_EXCHANGE_TYPES = {**virtual.Channel.exchange_types, "topic": Topics}


class PostgresChannel(virtual.Channel):
    """kombu's virtual channel over a `MessageStore` and a `Fetcher`."""

    QoS = PostgresQoS
    supports_fanout = True
    supports_batch_publish = True
    exchange_types: Any = _EXCHANGE_TYPES

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._subscriptions: dict[str, Subscription] = {}
        self._declared: dict[str, dict[str, Any]] = {}
        self._bound: OrderedDict[Binding, None] = OrderedDict()

    @property
    def _store(self) -> MessageStore:
        connection: Any = self.connection
        store: MessageStore = connection.broker.messages
        return store

    @property
    def _fetcher(self) -> Fetcher:
        connection: Any = self.connection
        fetcher: Fetcher = connection.fetcher
        return fetcher

    @property
    def _identity(self) -> str:
        connection: Any = self.connection
        return str(connection.identity)

    # -- exchanges and queues -----------------------------------------------------------------------------

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        """Turn `expires`, `message_ttl` and the like into RabbitMQ's words."""
        prepare: Any = getattr(base, "to_rabbitmq_queue_arguments")  # noqa: B009  (the stubs do not know it)
        return prepare(arguments or {}, **kwargs)

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002  (kombu's signature)
        """Declare a queue; only a passive declaration counts its messages, for that takes time."""
        queue = queue or f"amq.gen-{uuid()}"
        if not passive:
            self._new_queue(queue, **kwargs)
            return queue_declare_ok_t(queue, 0, 0)
        state = self._store.state(queue)
        if state is None:
            not_found: Any = ("Channel.queue_declare", "404")
            raise ChannelError(f"NOT_FOUND - no queue {queue!r}", (50, 10), *not_found)
        return queue_declare_ok_t(queue, state.messages, state.consumers)

    def queue_delete(
        self,
        queue: str,
        if_unused: bool = False,  # noqa: FBT001, FBT002  (kombu's signature)
        if_empty: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> None:
        """Delete a queue and its bindings, also those declared by another process."""
        state = self._store.state(queue) if if_unused or if_empty else None
        if state is not None and ((if_empty and state.messages) or (if_unused and state.consumers)):
            return
        self.state.queue_bindings_delete(queue)
        self._declared.pop(queue, None)
        self._bound = OrderedDict.fromkeys(one for one in self._bound if one.queue != queue)
        self._store.delete(queue)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **_: Any
    ) -> None:
        """Bind a queue to an exchange, for everybody."""
        exchange = exchange or "amq.direct"
        self.state.binding_declare(queue, exchange, routing_key or "", arguments)
        kind: Any = self.typeof(exchange)
        _, pattern, _ = kind.prepare_bind(queue, exchange, routing_key or "", arguments)
        binding = Binding(exchange, kind.type, routing_key or "", queue, pattern)
        self._bound[binding] = None
        self._store.bind(binding)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Any = None,  # noqa: ARG002  (kombu's signature)
        **_: Any,
    ) -> None:
        """Remove one binding, for everybody."""
        exchange = exchange or "amq.direct"
        self.state.binding_delete(queue, exchange, routing_key or "")
        key = (exchange, routing_key or "", queue)
        self._bound = OrderedDict.fromkeys(
            one for one in self._bound if (one.exchange, one.routing_key, one.queue) != key
        )
        self._store.unbind(exchange, queue, routing_key or "")

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Delete an exchange: its bindings are all there is of it. Queues stay."""
        if if_unused and self._store.bindings(exchange):
            return
        self._store.unbind_all(exchange)
        exchanges: Any = self.state.exchanges
        exchanges.pop(exchange, None)

    def exchange_declare(self, exchange: Any = None, type: Any = "direct", *args: Any, **kwargs: Any) -> None:  # noqa: A002  (kombu's signature)
        """Note an exchange's type; Postgres keeps its bindings alone."""
        if type and type not in self.exchange_types:
            invalid: Any = ("Channel.exchange_declare", "503")
            known = ", ".join(sorted(self.exchange_types))
            raise ChannelError(
                f"COMMAND_INVALID - no exchange type {type!r} (there are: {known})", (40, 10), *invalid
            )
        super().exchange_declare(exchange, type, *args, **kwargs)

    def get_table(self, exchange: str) -> list[Any]:
        """Return the bindings of an exchange, of whoever made them."""
        return self._store.bindings(exchange)

    def declare_again(self) -> None:
        """Bring back this channel's queues and bindings."""
        for queue, options in list(self._declared.items()):
            self._store.declare(queue, **options)
        for binding in list(self._bound):
            self._store.bind(binding)

    def _new_queue(self, queue: str, **options: Any) -> None:
        arguments = options.get("arguments") or {}
        wanted: dict[str, Any] = {
            "auto_delete": bool(options.get("auto_delete")),
            "expires": _span(arguments.get("x-expires")),
            "ttl": _span(arguments.get("x-message-ttl")),
        }
        self._declared[queue] = wanted
        self._store.declare(queue, **wanted)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self._store.state(queue) is not None

    def _size(self, queue: str) -> int:
        state = self._store.state(queue)
        return 0 if state is None else state.messages

    def has_messages(self, queue: str) -> bool:
        """Return whether a message waits in a queue, at once however many there are."""
        return self._store.has_messages(queue)

    def _purge(self, queue: str) -> int:
        return self._store.purge(queue)

    # -- publishing ---------------------------------------------------------------------------------------

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **_: Any) -> None:
        """Store a message in each queue it is for, in one statement."""
        new = self.prepared(message, exchange, routing_key)
        if not exchange and capture.caught(self._identity, new):
            return
        if exchange:
            with _for_now_or_never(message):
                sent = self._store.route(exchange, routing_key or "", new)
            if not sent and self.deadletter_queue:
                self._keep(NewMessage(self.deadletter_queue, new.payload, new.priority, new.expires))
        elif not self._store.send(new) and _is_task(message):
            self._keep(new)

    def prepared(self, message: dict[str, Any], exchange: str, routing_key: str) -> NewMessage:
        """Return a message as it is stored."""
        self._inplace_augment_message(message, exchange, routing_key)
        expiration = message["properties"].get("expiration")
        return NewMessage(
            queue=routing_key or "",
            payload=str_to_bytes(dumps(message)),
            priority=self._get_message_priority(message),
            expires=_span(expiration),
        )

    def _keep(self, new: NewMessage) -> None:
        """Store a message whose queue nobody has declared: a task is not thrown away for that."""
        self._new_queue(new.queue)
        self._store.send(new)

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what collects messages and stores them at once."""
        return PublishBatch(self, max_size)

    def send_many(self, messages: list[NewMessage]) -> None:
        """Store messages for queues, at once."""
        found = self._store.send_many(messages)
        for new in messages:
            if new.queue not in found:
                self._keep(new)

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self._keep(NewMessage(queue, str_to_bytes(dumps(message)), self._get_message_priority(message)))

    # -- consuming ----------------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,  # noqa: FBT001  (kombu's signature)
        callback: Any = None,
        consumer_tag: Any = None,
        **_: Any,
    ) -> str:
        """Let messages of a queue be delivered to `callback`."""
        self._consumers.add(consumer_tag)
        self._tag_to_queue[consumer_tag] = queue
        self._active_queues.append(queue)
        qos: Any = self.qos

        def receive(delivery: Delivery) -> None:
            message = self._message(delivery)
            if not no_ack:
                qos.append(message, message.delivery_tag)
            callback(message)

        raw = getattr(getattr(callback, "__self__", None), "on_message", None) is not None
        subscription = Subscription(
            queue, self, qos.room, receive, no_ack=bool(no_ack), takes_the_rest=not (no_ack or raw)
        )
        self._subscriptions[consumer_tag] = subscription
        self._fetcher.subscribe(subscription)
        return str(consumer_tag)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to one consumer.

        What has arrived for it is delivered, as RabbitMQ's clients do until the server confirms. It goes back
        where that would be wrong: to one with `on_message`, as in Celery's worker, which would begin it; to
        one that does not acknowledge, which might not look at it; and at the end of the channel.
        """
        if consumer_tag not in self._consumers:
            return
        self._consumers.discard(consumer_tag)
        queue = self._tag_to_queue.pop(consumer_tag, None)
        if queue in self._active_queues:
            self._active_queues.remove(queue)
        subscription = self._subscriptions.pop(consumer_tag)
        for delivery in self._fetcher.unsubscribe(subscription):
            if subscription.takes_the_rest and not self.closed:
                subscription.receive(delivery)
            else:
                self._fetcher.give_back(delivery.claim, counted=False)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Any:  # noqa: FBT001, FBT002  (kombu's signature)
        """Return the first message of a queue, None if there is none."""
        delivery = self._fetcher.claim_one(queue)
        if delivery is None:
            return None
        message = self._message(delivery)
        if no_ack:
            self._fetcher.settle(delivery.claim)
        else:
            self.qos.append(message, message.delivery_tag)
        return message

    def basic_qos(self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Set how many unacknowledged messages this channel takes."""
        self.qos.prefetch_count = prefetch_count
        if self._subscriptions:
            self._fetcher.bell.ring()

    def _message(self, delivery: Delivery) -> Any:
        raw = loads(bytes_to_str(delivery.payload))
        properties = raw["properties"]
        claim = delivery.claim
        properties["delivery_tag"] = tag_of(claim)
        info = properties["delivery_info"]
        info[capture.CLAIM] = [self._identity, *claim]
        if claim.number > 1:
            info["redelivered"] = True
        return self.Message(raw, channel=self)


@contextmanager
def _for_now_or_never(message: dict[str, Any]) -> Iterator[None]:
    """Let an event of a worker fail at once while Postgres is away: Celery keeps it until the next one.

    A connection error would have Celery try again until Postgres is back, in the loop that hears of signals.
    """
    try:
        yield
    except PASSING as error:
        if "hostname" not in (message.get("headers") or {}):
            raise
        told = first_line(error)
        raise OperationalError(told) from error


def tag_of(claim: Claimed) -> str:
    """Return a claim as a delivery tag: a message that is delivered again has another one."""
    return ".".join(map(str, claim))


def _span(milliseconds: Any) -> timedelta | None:
    return None if milliseconds is None else timedelta(milliseconds=float(milliseconds))


def _is_task(message: dict[str, Any]) -> bool:
    return "task" in (message.get("headers") or {})
