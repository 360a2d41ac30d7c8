"""`durable+embedded://` as a broker: queues in `.durable/broker`, beside the embedded Postgres.

It needs no server, carries Celery's remote control and events, and no kill of one process hurts another. What
a killed worker had reserved is lost, and so is what a power failure caught: runs of durable tasks are in
Postgres and are published again, other tasks want a real broker. All processes must be on one machine and
belong to one user.
"""

from __future__ import annotations

from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str, str_to_bytes
from kombu.utils.json import dumps, loads

from celery_durable.exceptions import ConfigurationError
from celery_durable.store.embedded.home import durable_home, make_private
from celery_durable.transport.spool import Binding, Spool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kombu import Connection

# Readers that are frozen or busy for a while are no dead readers: what asks for less gets this, in seconds.
_SHORTEST_EXPIRY = 60.0


class EmbeddedChannel(virtual.Channel):
    """kombu's virtual channel over a `Spool`."""

    supports_fanout = True

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._spool = Spool(connection.directory)
        self._expiries: dict[str, float] = {}

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> Any:
        """Pass `expires` on to `queue_declare`, in RabbitMQ's words."""
        expires = kwargs.get("expires")
        return arguments if expires is None else {**arguments, "x-expires": round(expires * 1000)}

    def queue_delete(
        self,
        queue: str,
        if_unused: bool = False,  # noqa: ARG002, FBT001, FBT002  (kombu's signature)
        if_empty: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> None:
        """Delete `queue` and its bindings, also those declared by another process."""
        if if_empty and self._spool.size(queue):
            return
        self.state.queue_bindings_delete(queue)
        self._expiries.pop(queue, None)
        self._spool.delete(queue)

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", arguments: Any = None, **_: Any
    ) -> None:
        """Remove one binding."""
        exchange = exchange or ""
        self.state.binding_delete(queue, exchange, routing_key)
        meta = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
        self._spool.unbind(exchange, _binding(meta))

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return the bindings of `exchange`; this connection's own if the directory was emptied."""
        stored = self._spool.bindings(exchange)
        own = (self.state.exchanges or {}).get(exchange, {}).get("table", ())
        return [*(stored or map(_binding, own))]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        self._spool.bind(exchange, _binding((routing_key, pattern, queue)))

    def _new_queue(self, queue: str, **options: Any) -> None:
        expires = (options.get("arguments") or {}).get("x-expires")
        if expires is not None:
            self._expiries[queue] = max(expires / 1000, _SHORTEST_EXPIRY)
        self._spool.declare(queue, self._expiries.get(queue))

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        urgency = self._get_message_priority(message, reverse=True)
        self._spool.put(queue, str_to_bytes(dumps(message)), urgency=urgency)

    def _put_fanout(self, exchange: str, message: dict[str, Any], *_: Any, **__: Any) -> None:
        for queue in {queue for _, _, queue in self.get_table(exchange)}:
            self._put(queue, message)

    def _get(self, queue: str, timeout: float | None = None) -> Any:  # noqa: ARG002  (kombu's signature)
        if queue in self._expiries and not self._spool.touch(queue):
            self._declare_again(queue)
        message = self._spool.get(queue, _decode)
        if message is None:
            raise Empty
        return message

    def _declare_again(self, queue: str) -> None:
        """Bring back a queue that was taken for dead while this process was frozen, or removed by hand."""
        self._spool.declare(queue, self._expiries[queue])
        for exchange, routing_key, arguments in self.state.queue_bindings(queue):
            meta = self.typeof(exchange).prepare_bind(queue, exchange, routing_key, arguments)
            self._spool.bind(exchange, _binding(meta))

    def _size(self, queue: str) -> int:
        return self._spool.size(queue)

    def _purge(self, queue: str) -> int:
        return self._spool.purge(queue)

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return self._spool.exists(queue)


class EmbeddedTransport(virtual.Transport):
    """The transport behind `durable+embedded://`.

    Arguments:
        client: the connection; its URL may name a directory, as in `durable+embedded:///srv/media`.

    Raises `ConfigurationError` for a URL that is not one of these.
    """

    Channel = EmbeddedChannel
    can_parse_url = True
    polling_interval = 0.02
    default_port = None
    driver_type = "durable"
    driver_name = "durable+embedded"
    implements = virtual.Transport.implements.extend(
        asynchronous=False,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
    )

    def __init__(self, client: Connection, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.directory = broker_directory(client)

    def establish_connection(self) -> Any:
        """Create the directory, and remove what the dead have left in it."""
        make_private(self.directory)
        Spool(self.directory).tidy()
        return super().establish_connection()

    def drain_events(self, connection: Any, timeout: float | None = None, **kwargs: Any) -> None:
        """Deliver one message, or raise `TimeoutError`.

        Celery 5.5 acknowledges between two calls. While that is what it takes to get the next message, a long
        wait is cut short, or each handful of tasks would cost the whole timeout.
        """
        if timeout is not None and not all(channel.qos.can_consume() for channel in self.channels or ()):
            timeout = min(timeout, self.polling_interval)
        super().drain_events(connection, timeout=timeout, **kwargs)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: ARG002, FBT001, FBT002  (kombu's signature)
        """Return the broker's URL; there is no password in it."""
        return f"durable+{uri}"

    def driver_version(self) -> str:
        """Return what `celery report` shows."""
        return "embedded"


def broker_directory(client: Connection) -> Path:
    """Return where the queues of a connection are kept.

    Arguments:
        client: kombu gives it the URL without its `durable+`, or (for one of several URLs) parsed.

    Raises `ConfigurationError` if the URL names a host, or another kind of store.
    """
    url = client.hostname or f"embedded:///{(client.virtual_host or '').lstrip('/')}"
    parts = urlsplit(url)
    if parts.scheme != "embedded" or parts.netloc:
        message = (
            f"durable+{url} is no broker of this version of celery-durable: use durable+embedded://, "
            f"durable+embedded:///an/absolute/path, or the URL of a broker such as redis:// or amqp://"
        )
        raise ConfigurationError(message)
    path = unquote(parts.path)
    return (Path(path) if path.strip("/") else durable_home()) / "broker"


def _binding(meta: Iterable[Any]) -> Binding:
    return Binding(*(part or "" for part in meta))


def _decode(content: bytes) -> dict[str, Any]:
    message = loads(bytes_to_str(content))
    if not isinstance(message, dict) or "delivery_tag" not in message.get("properties", {}):
        raise ValueError("it has no delivery tag")
    return message
