"""`durable+postgresql://` and `durable+embedded://` as a broker: the transport that kombu sees."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual

from celery_durable.exceptions import StoreError
from celery_durable.store.patience import PASSING
from celery_durable.store.url import driver, redact
from celery_durable.transport.broker import Broker, hide_password, identity_of, with_its_password
from celery_durable.transport.channel import PostgresChannel
from celery_durable.transport.fetcher import Fetcher

if TYPE_CHECKING:
    from kombu import Connection


class PostgresTransport(virtual.Transport):
    """The transport behind `durable+postgresql://` and `durable+embedded://`.

    Arguments:
        client: the connection; its URL names the database.

    Raises `ConfigurationError` for another kind of URL, when it connects.
    """

    Channel = PostgresChannel
    can_parse_url = True
    default_port = None
    polling_interval = None
    # Celery tells by this name what a broker can do: mingle, gossip, worker_disable_prefetch are for `redis`.
    driver_type = "redis"
    driver_name = "durable+postgresql"
    connection_errors = (*virtual.Transport.connection_errors, *PASSING, StoreError, OSError)
    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=frozenset(["direct", "topic", "fanout"]),
    )

    def __init__(self, client: Connection, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        hide_password(client)
        self._broker: Broker | None = None
        self._fetcher: Fetcher | None = None

    @cached_property
    def identity(self) -> str:
        """What tells this database and schema from another."""
        client: Any = self.client
        return identity_of(client)

    @property
    def broker(self) -> Broker:
        """The database."""
        if self._broker is None:
            client: Any = self.client
            self._broker = Broker.acquire(client)
        return self._broker

    @property
    def fetcher(self) -> Fetcher:
        """What brings messages to this connection's consumers."""
        if self._fetcher is None:
            self._fetcher = Fetcher(self.broker, self._declare_again)
        return self._fetcher

    def establish_connection(self) -> Any:
        """Connect; raise what is wrong with the server, the credentials or the schema."""
        self.broker.messages.ping()
        return super().establish_connection()

    def close_connection(self, connection: Any) -> None:
        """Acknowledge what is to be acknowledged, hand back what is claimed, and close."""
        super().close_connection(connection)
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            fetcher.stop()
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.release()

    def drain_events(self, connection: Any, timeout: float | None = None, **_: Any) -> None:  # noqa: ARG002  (kombu's signature)
        """Deliver one message, or wait for it; raise `TimeoutError` after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.fetcher.hand_over():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self.fetcher.wait(left):
                raise TimeoutError

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:  # noqa: ARG002  (kombu's signature)
        """Let an event loop deliver what arrives."""
        loop.add_reader(self.fetcher.arrivals.fileno(), self._on_arrival)

    def _on_arrival(self) -> None:
        """Deliver one message: before the next one, the loop sees to whatever else there is."""
        self.fetcher.arrivals.hush()
        try:
            self.fetcher.hand_over()
        finally:
            self.fetcher.ring_for_the_rest()

    def _declare_again(self) -> None:
        """Bring back queues that were taken for dead while this process was frozen."""
        channels: Any = self.channels
        for channel in list(channels or ()):
            channel.declare_again()

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: ARG002, FBT001, FBT002  (kombu's signature)
        """Return the broker's URL, without its password unless asked for."""
        url = with_its_password(uri, self.client)
        return f"durable+{url if include_password else redact(url)}"

    def driver_version(self) -> str:
        """Return what `celery report` shows."""
        return driver()
