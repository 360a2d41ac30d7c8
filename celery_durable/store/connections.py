"""Connections to Postgres: made after fork, few per process, and patient while Postgres is away."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from celery_durable.exceptions import ConfigurationError
from celery_durable.store import django_databases
from celery_durable.store.hints import REFUSED, with_hint
from celery_durable.store.patience import PASSING, persist, unavailable
from celery_durable.store.url import conninfo, django_alias, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

Row = dict[str, Any]
T = TypeVar("T")

KEEPALIVE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


class Connection(psycopg.Connection[Row]):
    """A connection to Postgres."""

    @cached_property
    def kept(self) -> psycopg.Cursor[Row]:
        """A cursor for statements whose outcome is read at once.

        To make one for each statement is a fifth of what the statement costs here.
        """
        return self.cursor()


class Connections:
    """The connections of one process to one database.

    Arguments:
        url: the backend URL, with or without its `durable+`.
        size: how many connections one process holds at most.
        prepare: whether statements are prepared on the server; off behind PgBouncer in transaction mode.
        outage_budget: seconds that a write waits for Postgres to come back.
        on_open: called once per process with the first connection; checks the schema.
    """

    kind: type[Connection] = Connection
    application = "celery-durable"
    hinted: tuple[type[psycopg.Error], ...] = REFUSED

    def __init__(
        self,
        url: str,
        *,
        size: int = 10,
        prepare: bool = True,
        outage_budget: float = 300.0,
        on_open: Callable[[Connection], None] | None = None,
    ) -> None:
        self.url = url
        self.outage_budget = outage_budget
        self.size = size
        self.prepare = prepare
        self._on_open = on_open
        self._pool: ConnectionPool[Connection] | None = None
        self._first = self._no_connection()
        self._checked = False
        self._keeps = True
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inherited: list[object] = []

    def _no_connection(self) -> list[Connection | None]:
        """Return the place of the first connection: empty while it is in use, None when there is none yet.

        Most processes write from one thread; asking the pool costs them a tenth of a step.
        """
        return [None] if self.size > 1 else []

    def begin(self) -> None:
        """Check the schema, unless that has been done in this process, and keep no connection."""
        self._arrive()
        if not self._checked:
            with self.dedicated() as connection:
                self._check_first(lambda _: None)(connection)

    def _arrive(self) -> None:
        """Begin anew in a child of a fork: it forgets what it inherited without touching its sockets."""
        if self._pid != os.getpid():
            # Kept, not closed: closing would say goodbye on sockets that the parent still uses.
            self._inherited += [self._pool, self._first]
            self._pool, self._first, self._checked = None, self._no_connection(), False
            self._pid, self._lock = os.getpid(), threading.Lock()
        if not self._checked and django_alias(self.url) is not None:
            self._keeps = not django_databases.may_be_dropped()

    def _check_first(self, work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """Return `work` with the check of the schema before it, on the same connection.

        Threads that begin at once may check more than once; they do not queue for a server that is away.
        """

        def checked(connection: Connection) -> T:
            if not self._checked and self._on_open is not None:
                with closed_on_error(connection):
                    self._on_open(connection)
            self._checked = True
            return work(connection)

        return checked

    def _open(self) -> ConnectionPool[Connection]:
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(
                    self._conninfo,
                    connection_class=self.kind,
                    kwargs=self._options(),
                    min_size=0,
                    max_size=max(1, self.size - 1),
                    max_idle=300,
                    timeout=5,
                    reconnect_timeout=5,
                    num_workers=1,
                    open=True,
                    name="celery-durable",
                )
            return self._pool

    def _conninfo(self) -> str:
        return conninfo(self.url)

    def _options(self) -> dict[str, Any]:
        return {
            **KEEPALIVE,
            "autocommit": True,
            "prepare_threshold": 0 if self.prepare else None,
            "row_factory": dict_row,
            "application_name": self.application,
        }

    def connect(self, patience: float | None = None) -> Connection:
        """Open a connection outside the pool; the caller closes it."""
        options = self._options()
        if patience is not None:
            options["connect_timeout"] = max(2, min(options["connect_timeout"], round(patience)))
        try:
            return self.kind.connect(self._conninfo(), **options)
        except psycopg.ProgrammingError as exc:
            message = f"{redact(self.url)!r} is not a URL that libpq understands: {exc}"
            raise ConfigurationError(message) from exc

    @contextmanager
    def dedicated(self) -> Iterator[Connection]:
        """Yield a connection of one's own and close it at the end."""
        connection = self.connect()
        try:
            yield connection
        finally:
            connection.close()

    def once(self, work: Callable[[Connection], T], *, patience: float | None = None) -> T:
        """Do `work` with a connection of this process, without a second try.

        Arguments:
            work: what to do.
            patience: seconds to wait for a connection; None means some.

        Raises `StoreError` with a hint where Postgres or a pooler before it is not set up for this.
        """
        try:
            return self._once(work, patience)
        except self.hinted as error:
            raise with_hint(error) from error

    def _once(self, work: Callable[[Connection], T], patience: float | None) -> T:
        self._arrive()
        if not self._checked:
            work = self._check_first(work)
        first = self._first
        try:
            connection = first.pop()
        except IndexError:
            return self._pooled(work, patience)
        try:
            connection = connection or self.connect(patience)
            return work(connection)
        finally:
            # closed meanwhile, left at work, or in the way of a test runner that drops its database
            if first is not self._first or not _usable(connection) or not self._keeps:
                _close(connection)
                connection = None
            first.append(connection)

    def _pooled(self, work: Callable[[Connection], T], patience: float | None) -> T:
        if not self._keeps:
            with self.dedicated() as connection:
                return work(connection)
        pool = self._pool or self._open()
        connection = pool.getconn(patience)
        try:
            return work(connection)
        finally:
            pool.putconn(connection)

    def impatiently(self, work: Callable[[Connection], T], patience: float) -> T:
        """Do `work` once; raise `StoreUnavailableError` when Postgres is away.

        Arguments:
            work: what to do.
            patience: seconds to wait for a connection, and then for the answers.
        """
        try:
            return self.once(
                lambda connection: _bounded(work, connection, patience), patience=min(patience, 5.0)
            )
        except PASSING as error:
            raise unavailable(error, repr(redact(self.url)), self.drain) from error

    def patiently(
        self,
        work: Callable[[Connection], T],
        *,
        budget: float | None = None,
        give_up: Callable[[], bool] | None = None,
    ) -> T:
        """Do `work`, again while Postgres is away, for `budget` seconds (default: the outage budget).

        `work` must recognise its own earlier success, as its answer may have been lost.
        Raises `StoreUnavailableError` at the end of the budget or when `give_up()` says so.
        """
        began = time.monotonic()
        try:
            return self.once(work)
        except PASSING as error:
            return persist(
                lambda: self.once(work),
                error,
                repr(redact(self.url)),
                began,
                self.outage_budget if budget is None else budget,
                give_up,
                self.drain,
            )

    def drain(self) -> None:
        """Replace the pool's open connections: the server went away."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.drain()

    def close(self) -> None:
        """Close the connections of this process."""
        if self._pid == os.getpid():
            if self._pool is not None:
                self._pool.close()
            for connection in self._first:
                _close(connection)
        self._pool, self._first, self._checked = None, self._no_connection(), False


@contextmanager
def closed_on_error(connection: Connection) -> Iterator[None]:
    """Close a connection when what is done with it fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _bounded(work: Callable[[Connection], T], connection: Connection, seconds: float) -> T:
    """Do `work`, and give up after so many seconds; the connection is of no more use then.

    A network that swallows everything would be noticed much later.
    """
    deadline = time.monotonic() + seconds

    def wait(generator: Any, *args: Any, **kwargs: Any) -> Any:
        return type(connection).wait(connection, _until(deadline, generator), *args, **kwargs)

    vars(connection)["wait"] = wait
    try:
        return work(connection)
    finally:
        del vars(connection)["wait"]


def _until(deadline: float, generator: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Do what a generator of psycopg does, which is resumed ten times a second, until a deadline."""
    try:
        wanted = next(generator)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                message = "no answer in time"
                raise psycopg.OperationalError(message)
            wanted = generator.send(ready)
    except StopIteration as end:
        value: T = end.value
        return value


def _usable(connection: Connection | None) -> bool:
    return connection is not None and connection.pgconn.transaction_status == TransactionStatus.IDLE


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()
