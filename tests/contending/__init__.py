"""Transactions that meet: some held open, some stalled after their snapshot, and a clock that tests move."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from harness.waiting import eventually

from celery_durable.checkpoint import StepWrite
from celery_durable.store import Store
from celery_durable.store.runs import RunStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store.connections import Connection
    from celery_durable.store.keeping import KeeperStore

T = TypeVar("T")

_GATE = 4711
_BLOCKED = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
_DEFINITION_OF_CLOCK = "select pg_get_functiondef('durable.clock()'::regprocedure) as definition"
# `durable.clock()` is where a statement stops: read after its snapshot, and not before, being volatile here.
_STALLING_CLOCK = f"""
create or replace function durable.clock() returns timestamptz language plpgsql volatile as $$
begin
    if current_setting('durable.stall', true) = 'on' then
        perform pg_advisory_xact_lock_shared({_GATE});
    end if;
    return now();
end $$
"""


class One:
    """A single connection where a store expects a pool: every statement joins its transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def patiently(self, work: Callable[[Connection], T], **_: Any) -> T:
        return work(self.connection)

    once = patiently


@contextmanager
def in_transaction(store: Store, runs: RunStore | None = None) -> Iterator[RunStore]:
    """Yield the statements of runs in a transaction that is committed at the end."""
    with store.connections.dedicated() as connection, connection.transaction():
        connections: Any = One(connection)
        inside = RunStore(connections, schema=store.settings.schema, check=store.settings.check)
        if runs is not None:
            inside._sql = runs._sql
        yield inside


def step_write(key: str, seq: int, outcome: str = "ok", **more: Any) -> StepWrite:
    """Return what an attempt writes for a step."""
    write: dict[str, Any] = {
        "key": key,
        "seq": seq,
        "outcome": outcome,
        "output": b"1",
        "codec": "json",
        "digest": b"d",
        "arguments": "()",
        "tries": 1,
        "spent": 0,
        "error": None,
        "clock": None,
        "seconds": 0.5,
    }
    return StepWrite(**{**write, **more})


@contextmanager
def keeper(store: Store) -> Iterator[KeeperStore]:
    """Yield the keeper's statements on a connection of their own."""
    with store.connections.dedicated() as connection:
        yield store.keeper(connection)


def altered(store: Store, name: str, *changes: tuple[str, str]) -> RunStore:
    """Return the statements of runs, one of them as somebody might have written it."""
    runs = RunStore(store.connections, schema=store.settings.schema, check=store.settings.check)
    runs._sql = {**runs._sql, name: changed(runs._sql[name], *changes)}
    return runs


def changed(sql: str, *changes: tuple[str, str]) -> str:
    """Return `sql` with replacements that have to apply."""
    for old, new in changes:
        assert old in sql, f"{old!r} is not in the statement any more"
        sql = sql.replace(old, new)
    return sql


def background(work: Callable[[], T]) -> Future[T]:
    """Do `work` in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  (it is the future's)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(*works: Callable[[], T]) -> list[T]:
    """Do all of this at once; return the results."""
    barrier = threading.Barrier(len(works))

    def after(work: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            barrier.wait(10)
            return work()

        return run

    return [future.result(20) for future in [background(after(work)) for work in works]]


def wait_until_blocked(store: Store, sessions: int = 1) -> None:
    """Return when this many sessions of the database wait for another one's lock."""
    with store.connections.dedicated() as watcher:
        eventually(
            lambda: len(watcher.execute(_BLOCKED).fetchall()) >= sessions,
            timeout=30,
            what=f"{sessions} sessions to wait for a lock",
        )


@contextmanager
def stalled(store: Store) -> Iterator[Callable[[Callable[[Store], T]], Future[T]]]:
    """Yield what starts work whose statements stop after their snapshot, until the end of the block."""
    parts = urlsplit(store.url)
    query = "&".join(filter(None, [parts.query, "options=" + quote("-c durable.stall=on")]))
    stalling = Store(urlunsplit(parts._replace(query=query)), store.settings)
    futures: list[Future[Any]] = []

    def start(work: Callable[[Store], T]) -> Future[T]:
        future = background(lambda: work(stalling))
        futures.append(future)
        wait_until_blocked(store, len(futures))
        return future

    with store.connections.dedicated() as gate:
        clock = gate.execute(_DEFINITION_OF_CLOCK).fetchone()
        gate.execute(_STALLING_CLOCK.encode())
        gate.execute("select pg_advisory_lock(%s)", (_GATE,))
        try:
            yield start
        finally:
            gate.execute("select pg_advisory_unlock(%s)", (_GATE,))
            for future in futures:
                future.exception(20)
            gate.execute(str(clock and clock["definition"]).encode())
            stalling.close()


def move_clock(store: Store, offset: str) -> None:
    """Set the database's clock: every connection opened from now on sees it."""
    with store.connections.dedicated() as connection:
        name = connection.info.dbname
        connection.execute(f"alter database {name} set durable.clock_offset = '{offset}'".encode())
    store.close()
