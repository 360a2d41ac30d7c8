"""The database behind a broker URL: one set of connections for all that a process opens to it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from celery_durable.exceptions import ConfigurationError
from celery_durable.store import migrate
from celery_durable.store.connections import Connections
from celery_durable.store.consuming import ConsumerSession
from celery_durable.store.in_hand import database_of
from celery_durable.store.messages import MessageStore
from celery_durable.store.url import part_password, with_password
from celery_durable.transport.options import BrokerOptions

if TYPE_CHECKING:
    from kombu import Connection as KombuConnection

    from celery_durable.store.connections import Connection

_SCHEMES = frozenset({"postgresql", "postgres", "embedded"})
_shared: dict[tuple[str, BrokerOptions], Broker] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603  (another thread of the parent may have held it)
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class BrokerConnections(Connections):
    """Connections that the server's list of sessions tells from the store's."""

    application = "celery-durable broker"


class Broker:
    """A database that is a broker.

    Arguments:
        url: of the database, without `durable+`.
        options: the transport's.
    """

    def __init__(self, url: str, options: BrokerOptions) -> None:
        self.url = url
        self.options = options
        self.users = 0
        self.connections = BrokerConnections(
            url, size=options.pool_size, prepare=options.prepare_statements, on_open=self._check
        )
        self.messages = MessageStore(self.connections, schema=options.schema)

    @classmethod
    def acquire(cls, client: KombuConnection) -> Broker:
        """Return the broker of a connection, shared by all users in this process; `release` it at the end."""
        key = (database_url(client), BrokerOptions.among(client.transport_options or {}))
        with _lock:
            broker = _shared.get(key)
            if broker is None:
                broker = _shared[key] = cls(*key)
            broker.users += 1
            return broker

    def release(self) -> None:
        """Close the connections with the last user."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            _shared.pop((self.url, self.options), None)
        self.connections.close()

    def session(self) -> ConsumerSession:
        """Open a consumer's session."""
        return ConsumerSession(
            self.connections,
            schema=self.options.schema,
            listens=self.options.listens,
            max_returns=self.options.max_returns,
        )

    def _check(self, connection: Connection) -> None:
        schema, wanted = self.options.schema, self.options.auto_migrate
        if wanted is None:
            wanted = self.url.startswith("embedded:")
        if wanted and migrate.installed(connection, schema) < migrate.newest():
            migrate.migrate(connection, schema)
        migrate.check(connection, schema)


def identity_of(client: KombuConnection) -> str:
    """Return what tells a connection's database and schema from another's."""
    return database_of(database_url(client), BrokerOptions.among(client.transport_options or {}).schema)


def database_url(client: KombuConnection) -> str:
    """Return the URL of the database behind a connection.

    Arguments:
        client: kombu gives it the URL without its `durable+`, or (for one of several URLs) parsed.

    Raises `ConfigurationError` if the URL is of another kind.
    """
    given = client.hostname or ""
    scheme = urlsplit(given).scheme
    if "://" in given and scheme.partition("+")[0] in _SCHEMES:
        return with_its_password(given, client)
    scheme = str(client.transport_cls).removeprefix("durable+")
    if "://" in given or scheme not in _SCHEMES:
        message = (
            f"durable+{given} is no broker of celery-durable: use durable+postgresql://user@host/database, "
            f"durable+embedded:// or durable+embedded:///an/absolute/path"
        )
        raise ConfigurationError(message)
    return _put_together(scheme, given, client)


def with_its_password(url: str, client: Any) -> str:
    """Return a connection's URL with the password that `hide_password` has kept apart."""
    return with_password(url, quote(client.password, safe="")) if client.password else url


def hide_password(client: Any) -> None:
    """Keep a connection's password apart from its URL, for kombu and Celery show the one and not the other.

    Arguments:
        client: also one that has switched to another URL of its list; afterwards its `hostname` is a URL.
    """
    try:
        url = database_url(client)
    except ConfigurationError:
        return  # it says so when it connects
    client.uri_prefix = "durable"
    client.hostname, password = part_password(url)
    client.password = unquote(password) if password else None


def _put_together(scheme: str, host: str, client: Any) -> str:
    user = quote(client.userid or "", safe="")
    if client.password:
        user += ":" + quote(client.password, safe="")
    port = f":{client.port}" if client.port else ""
    path = quote((client.virtual_host or "").lstrip("/"), safe="/")
    return f"{scheme}://{user}{'@' if user else ''}{host}{port}/{path}"
