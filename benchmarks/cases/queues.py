"""Queues in Postgres as queues: messages a second through one consumer, with more and more of them waiting.

A turn publishes a batch and takes as many messages out; the backlog in front of it stays. Ours goes the whole
way through kombu; Procrastinate through its job manager, one job at a time as its worker does; PGMQ by its
functions, in batches. Then the same with a transaction held open, which keeps all that is deleted.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from kombu import Connection, Consumer, Producer, Queue

from benchmarks.measuring import Spread, interleaved, ratio
from benchmarks.report import Row, Target
from benchmarks.setting import Skipped
from celery_durable import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.setting import Setting

_BATCH = 100
_NAME = "bench"
_BODY = {"number": 1, "path": "https://example.org/video/1", "text": "x" * 500}
_OURS = "durable"


class Player(Protocol):
    """A queue that is filled and emptied."""

    def publish(self, number: int) -> None:
        """Publish so many messages, each by itself."""

    def handle(self, number: int) -> None:
        """Take so many out, and acknowledge them."""

    def fill(self, number: int) -> None:
        """Let so many more wait."""

    def close(self) -> None:
        """End."""


class Ours:
    """kombu on the Postgres broker."""

    def __init__(self, database: str) -> None:
        transport.register()
        self._database = database
        self._connection = Connection(f"durable+{database}", transport_options={"auto_migrate": True})
        self._queue = Queue(_NAME, channel=self._connection.channel())
        self._producer = Producer(self._connection.default_channel)
        self._producer.publish(_BODY, routing_key=_NAME, declare=[self._queue])
        self._handled = 0
        self._wanted = 0
        channel = self._connection.channel()
        self._consumer = Consumer(channel, [self._queue], on_message=self._take, prefetch_count=_BATCH)

    def publish(self, number: int) -> None:
        """Publish so many messages, each by itself."""
        for _ in range(number):
            self._producer.publish(_BODY, routing_key=_NAME)

    def handle(self, number: int) -> None:
        """Take so many out, and acknowledge them."""
        self._wanted += number
        self._consumer.consume()
        while self._handled < self._wanted:
            self._connection.drain_events(timeout=30)
        self._consumer.cancel()  # or it would take the next turn's

    def _take(self, message: Any) -> None:
        if self._handled < self._wanted:
            self._handled += 1
            message.ack()
        else:
            message.requeue()

    def fill(self, number: int) -> None:
        """Let so many more wait."""
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute(
                "insert into durable.message (queue, priority, payload) select m.queue, m.priority, m.payload"
                " from (select * from durable.message limit 1) m, generate_series(1, %s)",
                (number,),
            )
            connection.execute("vacuum analyze durable.message")

    def close(self) -> None:
        """End."""
        self._connection.close()


class Procrastinate:
    """Procrastinate's job manager."""

    def __init__(self, database: str) -> None:
        from procrastinate import App, PsycopgConnector
        from procrastinate.jobs import Job

        self._database = database
        self._loop = asyncio.new_event_loop()
        self._app = App(connector=PsycopgConnector(conninfo=database, min_size=1, max_size=1))
        self._run(self._app.open_async())
        self._run(self._app.schema_manager.apply_schema_async())
        self._manager = self._app.job_manager
        self._job = Job(
            id=None, queue=_NAME, lock=None, queueing_lock=None, task_name="nothing", task_kwargs=_BODY
        )
        self._worker: int = self._run(self._manager.register_worker())
        self.publish(1)

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def publish(self, number: int) -> None:
        """Publish so many messages, each by itself."""

        async def publish() -> None:
            for _ in range(number):
                await self._manager.defer_job_async(self._job)

        self._run(publish())

    def handle(self, number: int) -> None:
        """Take so many out, and acknowledge them."""
        from procrastinate.jobs import Status

        async def handle() -> None:
            for _ in range(number):
                job = await self._manager.fetch_job([_NAME], self._worker)
                if job is None:
                    message = "there is no job"
                    raise RuntimeError(message)
                await self._manager.finish_job(job, Status.SUCCEEDED, delete_job=True)

        self._run(handle())

    def fill(self, number: int) -> None:
        """Let so many more wait."""
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute("set session_replication_role = replica")  # without a notification for each
            connection.execute(
                "insert into procrastinate_jobs (queue_name, task_name, args)"
                " select %s, 'nothing', %s::jsonb from generate_series(1, %s)",
                (_NAME, json.dumps(_BODY), number),
            )
            connection.execute("vacuum analyze procrastinate_jobs")

    def close(self) -> None:
        """End."""
        self._run(self._app.close_async())
        self._loop.close()


class Pgmq:
    """PGMQ's functions, from the SQL that its Python package carries."""

    def __init__(self, database: str) -> None:
        from pgmq.install import get_embedded_install_sql

        self._connection = psycopg.connect(database, autocommit=True, prepare_threshold=0)
        if not self._connection.execute("select to_regnamespace('pgmq')").fetchone()[0]:  # type: ignore[index]
            self._connection.execute("create schema pgmq")
        self._connection.execute(get_embedded_install_sql().encode(), prepare=False)
        self._connection.execute("select pgmq.create(%s)", (_NAME,))
        self._body = json.dumps(_BODY)

    def publish(self, number: int) -> None:
        """Publish so many messages, each by itself."""
        for _ in range(number):
            self._connection.execute("select pgmq.send(%s, %s::jsonb)", (_NAME, self._body))

    def handle(self, number: int) -> None:
        """Take so many out, and acknowledge them."""
        while number > 0:
            sql = "select msg_id from pgmq.read(%s, 60, %s)"
            found = [row[0] for row in self._connection.execute(sql, (_NAME, min(number, 10)))]
            self._connection.execute("select pgmq.delete(%s, %s::bigint[])", (_NAME, found))
            number -= len(found)

    def fill(self, number: int) -> None:
        """Let so many more wait."""
        self._connection.execute(
            "insert into pgmq.q_bench (vt, message) select now(), %s::jsonb from generate_series(1, %s)",
            (self._body, number),
        )
        self._connection.execute("vacuum analyze pgmq.q_bench")

    def close(self) -> None:
        """End."""
        self._connection.close()


_PLAYERS: dict[str, tuple[str, Callable[[str], Player]]] = {
    _OURS: ("celery_durable", Ours),
    "procrastinate": ("procrastinate", Procrastinate),
    "pgmq": ("pgmq", Pgmq),
}


def run(setting: Setting) -> Iterable[Row]:
    """Compare the queues with each other, and each with itself when it is full."""
    with ExitStack() as stack:
        players, databases = _players(setting, stack)
        empty = _through(players, setting)
        yield from _rows("0 waiting", empty, empty)
        before = 0
        for waiting in (100_000,) if setting.quick else (100_000, 1_000_000):
            for player in players.values():
                player.fill(waiting - before)
            before = waiting
            yield from _rows(f"{waiting:,} waiting", _through(players, setting), empty)
        for name, player in players.items():
            yield from _held(setting, name, player, databases[name])


def _players(setting: Setting, stack: ExitStack) -> tuple[dict[str, Player], dict[str, str]]:
    players: dict[str, Player] = {}
    databases: dict[str, str] = {}
    for name, (package, make) in _PLAYERS.items():
        if not find_spec(package):
            setting.say(f"{name} left out: pip install {package}")
            continue
        databases[name] = setting.database(name)
        players[name] = make(databases[name])
        stack.callback(players[name].close)
    if _OURS not in players:
        raise Skipped("there is nothing to compare")
    return players, databases


def _through(players: dict[str, Player], setting: Setting) -> dict[str, list[float]]:
    rounds = setting.rounds(20, 6)
    return interleaved({name: _turn(player) for name, player in players.items()}, rounds, warm_up=2)


def _turn(player: Player) -> Callable[[int], float]:
    """Return what publishes and handles a batch, and says how many messages a second that was."""

    def turn(_: int) -> float:
        began = time.perf_counter()
        player.publish(_BATCH)
        player.handle(_BATCH)
        return _BATCH / (time.perf_counter() - began)

    return turn


def _rows(where: str, rates: dict[str, list[float]], empty: dict[str, list[float]]) -> Iterator[Row]:
    for name, values in rates.items():
        what = f"{name}, {where}"
        if rates is empty:
            against = None if name == _OURS else ratio(values, empty[_OURS])
            yield Row(what, Spread.of(values), "messages/s", against, "" if name == _OURS else _OURS)
        else:
            target = Target(at_least=0.8) if name == _OURS else None
            yield Row(what, Spread.of(values), "messages/s", ratio(values, empty[name]), "0 waiting", target)


def _held(setting: Setting, name: str, player: Player, database: str) -> Iterator[Row]:
    """Compare the end of a time in which a transaction is held open with the time before it."""
    turn, rates = _turn(player), []
    seconds = setting.hold
    part = max(5.0, seconds / 10)
    before = _for(part, turn)
    with _holding(database):
        began = time.monotonic()
        while time.monotonic() - began < seconds - part:
            rates.append(turn(0))
        end = _for(part, turn)
    passed = _BATCH * (len(rates) + len(end))
    what = f"{name}, after {seconds:.0f} s and {passed:,} messages with a transaction held open"
    target = Target(at_least=0.8) if name == _OURS else None
    yield Row(what, Spread.of(end), "messages/s", ratio(end, before), "before", target)


def _for(seconds: float, turn: Callable[[int], float]) -> list[float]:
    began, rates = time.monotonic(), []
    while not rates or time.monotonic() - began < seconds:
        rates.append(turn(0))
    return rates


@contextmanager
def _holding(database: str) -> Iterator[None]:
    with psycopg.connect(database) as connection:
        connection.execute("set transaction isolation level repeatable read")
        connection.execute("select txid_current()")
        yield
        connection.rollback()
