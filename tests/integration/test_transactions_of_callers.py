"""A run stored in the caller's transaction comes with its commit, and goes with its rollback."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2
import psycopg2.extras
import pytest
from celery import Celery, Task, chain, chord, group
from harness.postgres import fresh_database
from harness.tables import Tables
from harness.waiting import eventually
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import celery_durable as durable
from celery_durable import envelope
from celery_durable.keeper import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Engine

DRIVERS = ("psycopg", "psycopg2")


def fulfil(order: int) -> int:
    return order


class Shop:
    """An app whose store is in the database of its orders, and a look at both."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.app = Celery(
            "shop",
            broker=f"durable+{url}",
            backend=f"durable+{url}",
            task_cls=durable.DurableTask,
            set_as_current=False,
        )
        self.app.conf.update(durable_auto_migrate=True, **settings)
        self.fulfil = self.app.task(fulfil, name="callers.fulfil", shared=False)
        self.plain = self.app.task(fulfil, name="callers.plain", base=Task, shared=False)
        self.store.migrate()
        self.tables = Tables(url)
        self.tables.rows('create table "order" (id integer primary key)')

    @property
    def store(self) -> Any:
        backend: Any = self.app.backend
        return backend.store

    def sent(self) -> list[str]:
        """Take what the broker has; return the ids of the tasks."""
        found = []
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            while (message := channel.basic_get("celery", no_ack=True)) is not None:
                found.append(message.headers["id"])
        return found

    def runs(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.tables.rows("select * from durable.run order by key")}

    def orders(self) -> list[int]:
        return [row["id"] for row in self.tables.rows('select id from "order" order by id')]

    def close(self) -> None:
        self.tables.close()
        self.store.close()
        self.app.close()


@pytest.fixture(scope="module")
def shared(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with fresh_database(postgres_url) as url:
        made = Shop(url)
        yield made
        made.close()


@pytest.fixture
def shop(shared: Shop) -> Shop:
    shared.tables.rows('delete from durable.run; delete from "order"')
    shared.sent()
    return shared


@pytest.fixture(params=DRIVERS)
def engine(request: pytest.FixtureRequest, shop: Shop) -> Iterator[Engine]:
    made = create_engine(shop.url.replace("postgresql", f"postgresql+{request.param}"))
    yield made
    made.dispose()


def order(on: Any, number: int) -> None:
    on.execute(text(f'insert into "order" values ({number})'))


@contextmanager
def counting(shop: Shop) -> Iterator[list[str]]:
    """Collect the statements that the store's own connections execute."""
    seen: list[str] = []
    patiently = shop.store.connections.patiently

    def counted(work: Any, **options: Any) -> Any:
        seen.append(work.__qualname__)
        return patiently(work, **options)

    shop.store.connections.patiently = counted
    try:
        yield seen
    finally:
        del shop.store.connections.patiently


# -- SQLAlchemy -------------------------------------------------------------------------------------------


def test_a_session_stores_the_run_with_its_commit_and_sends_it_after_that(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session:
        order(session, 1)
        result = shop.fulfil.apply_async((1,), transaction=session)
        assert (shop.runs(), shop.sent()) == ({}, [])
        session.commit()

    assert shop.sent() == [result.id]
    run = shop.runs()[result.id]
    assert run["state"] == "pending"
    assert run["published_at"] is not None
    assert shop.orders() == [1]


def test_a_session_rolled_back_leaves_neither_run_nor_message(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session:
        order(session, 1)
        shop.fulfil.apply_async((1,), transaction=session)
        session.rollback()
        kept = shop.fulfil.apply_async((2,), transaction=session)
        session.commit()

    assert shop.sent() == [kept.id] == list(shop.runs())
    assert shop.orders() == []


def test_a_savepoint_rolled_back_takes_its_runs_with_it_and_no_others(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        before = shop.fulfil.apply_async((1,), transaction=session)
        with session.begin_nested():
            inside = shop.fulfil.apply_async((2,), transaction=session)
            undone = session.begin_nested()
            shop.fulfil.apply_async((3,), transaction=session)
            undone.rollback()
        assert shop.sent() == []  # a savepoint released is no commit
        after = shop.fulfil.apply_async((4,), transaction=session)

    assert shop.sent() == [before.id, inside.id, after.id] == list(shop.runs())


def test_a_session_that_fails_to_commit_sends_nothing(shop: Shop, engine: Engine) -> None:
    shop.tables.rows('create table if not exists "once" (id integer unique deferrable initially deferred)')
    with Session(engine) as session:
        session.execute(text('insert into "once" values (1), (1)'))
        shop.fulfil.apply_async((1,), transaction=session)
        with pytest.raises(Exception, match="once_id_key"):
            session.commit()

    assert (shop.runs(), shop.sent()) == ({}, [])


def test_a_scoped_session_is_as_good_as_the_session_in_it(shop: Shop, engine: Engine) -> None:
    scoped = scoped_session(sessionmaker(engine))
    result = shop.fulfil.apply_async((1,), transaction=scoped)
    scoped.commit()
    scoped.remove()

    assert shop.sent() == [result.id]


def test_a_bare_connection_sends_when_the_pool_has_it_back(shop: Shop, engine: Engine) -> None:
    with engine.begin() as connection:
        order(connection, 1)
        kept = shop.fulfil.apply_async((1,), transaction=connection)
        savepoint = connection.begin_nested()
        shop.fulfil.apply_async((2,), transaction=connection)
        savepoint.rollback()
    assert shop.sent() == [kept.id]

    with engine.connect() as connection:
        shop.fulfil.apply_async((3,), transaction=connection)
        connection.rollback()
        second = shop.fulfil.apply_async((4,), transaction=connection)
        connection.commit()
        third = shop.fulfil.apply_async((5,), transaction=connection)  # the one before is over: sent now
        assert shop.sent() == [second.id]
        connection.commit()

    assert shop.sent() == [third.id]
    assert list(shop.runs()) == [kept.id, second.id, third.id]


def test_many_runs_of_one_transaction_cost_two_statements_after_it(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session:
        results = [shop.fulfil.apply_async((n,), transaction=session) for n in range(20)]
        with counting(shop) as statements:
            session.commit()

    assert len(statements) == 2
    assert shop.sent() == [result.id for result in results]


def test_an_asynchronous_session_runs_the_call_in_its_synchronous_one(shop: Shop) -> None:
    engine = create_async_engine(shop.url.replace("postgresql", "postgresql+psycopg"))

    async def ordering() -> str:
        async with AsyncSession(engine) as session:
            with pytest.raises(durable.TransactionUsageError, match="run_sync"):
                shop.fulfil.apply_async((1,), transaction=session)
            result = await session.run_sync(lambda plain: shop.fulfil.apply_async((1,), transaction=plain))
            await session.commit()
        await engine.dispose()
        return str(result.id)

    assert shop.sent() == []
    run_id = asyncio.run(ordering())
    assert shop.sent() == [run_id]


# -- drivers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", [psycopg.connect, psycopg2.connect], ids=DRIVERS)
def test_a_drivers_connection_stores_the_run_and_the_keeper_sends_it_at_once(
    shop: Shop, connect: Callable[[str], Any]
) -> None:
    connection = connect(shop.url)
    shop.fulfil.apply_async((1,), transaction=connection)
    connection.rollback()
    result = shop.fulfil.apply_async((2,), transaction=connection)
    connection.commit()
    connection.close()

    assert list(shop.runs()) == [result.id]
    with shop.store.connections.dedicated() as keepers:
        assert services.publish_unpublished(shop.app, shop.store.keeper(keepers)) == 1
    assert shop.sent() == [result.id]


def test_rows_of_any_shape_are_read(shop: Shop) -> None:
    with psycopg.connect(shop.url, row_factory=dict_row) as modern:
        first = shop.fulfil.apply_async((1,), transaction=modern)
    classic = psycopg2.connect(shop.url, cursor_factory=psycopg2.extras.RealDictCursor)
    second = shop.fulfil.apply_async((2,), transaction=classic)
    classic.commit()
    classic.close()

    assert list(shop.runs()) == [first.id, second.id]


def test_autocommit_is_refused_unless_a_transaction_is_open(shop: Shop) -> None:
    with psycopg.connect(shop.url, autocommit=True) as connection:
        with pytest.raises(durable.TransactionUsageError, match="autocommit mode"):
            shop.fulfil.apply_async((1,), transaction=connection)
        with connection.transaction():
            result = shop.fulfil.apply_async((1,), transaction=connection)
    engine = create_engine(shop.url.replace("postgresql", "postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(durable.TransactionUsageError, match="autocommit mode"):
        shop.fulfil.apply_async((1,), transaction=session)
    engine.dispose()

    assert list(shop.runs()) == [result.id]


def test_what_is_no_transaction_is_refused_by_name(shop: Shop) -> None:
    with pytest.raises(durable.TransactionUsageError, match=r"builtins\.bool, which is no connection"):
        shop.fulfil.apply_async((1,), transaction=True)
    engine = create_engine("sqlite://")
    connection = engine.raw_connection()
    with pytest.raises(durable.TransactionUsageError, match="takes parameters in another way"):
        shop.fulfil.apply_async((1,), transaction=connection.dbapi_connection)
    connection.close()
    engine.dispose()


def test_a_transaction_of_another_database_is_refused_and_not_spoilt(
    shop: Shop, postgres_url: str, tmp_path: Path
) -> None:
    with fresh_database(postgres_url) as url, psycopg.connect(url) as elsewhere:
        elsewhere.execute("create table kept (id integer)")
        with pytest.raises(durable.TransactionUsageError, match="of another database"):
            shop.fulfil.apply_async((1,), transaction=elsewhere)
        elsewhere.execute("insert into kept values (1)")
        elsewhere.commit()
        durable_too = Shop(url)
        try:
            with pytest.raises(durable.TransactionUsageError, match="of another database"):
                shop.fulfil.apply_async((1,), transaction=elsewhere)
            elsewhere.rollback()
        finally:
            durable_too.close()

    assert (shop.runs(), shop.sent()) == ({}, [])


def test_a_role_that_may_only_insert_and_select_can_start_runs(shop: Shop) -> None:
    role = f"web_{uuid.uuid4().hex[:8]}"
    shop.tables.rows(f"create role {role}")
    shop.tables.rows(f"grant usage on schema durable to {role}")
    shop.tables.rows(f"grant insert, select on durable.run to {role}")
    try:
        with psycopg.connect(shop.url) as connection:
            connection.execute(f"set role {role}".encode())
            result = shop.fulfil.apply_async((1,), transaction=connection)
        assert list(shop.runs()) == [result.id]
    finally:
        shop.tables.rows(f"drop owned by {role}; drop role {role}")


# -- what a call may ask for ------------------------------------------------------------------------------


def test_countdown_counts_from_the_call_and_not_from_the_start_of_the_transaction(shop: Shop) -> None:
    with psycopg.connect(shop.url) as connection:
        connection.execute("select pg_sleep(0.3)")
        later = shop.fulfil.apply_async((1,), countdown=60, expires=90, transaction=connection)
        now = shop.fulfil.apply_async((1,), eta=shop.app.now(), transaction=connection)
        (began,) = connection.execute("select now()").fetchone() or ()

    run = shop.runs()[later.id]
    assert (run["state"], run["reason"]) == ("waiting", "timer")
    assert (run["due"] - began).total_seconds() > 60.3
    assert (run["expires_at"] - began).total_seconds() > 90.3
    assert shop.runs()[now.id]["state"] == "pending"


def test_the_keeper_does_not_send_what_its_caller_is_about_to(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session, pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "publish_stored", lambda _, messages: [one.id for one in messages])
        shop.fulfil.apply_async((1,), transaction=session)
        session.commit()  # the broker is away
    with shop.store.connections.dedicated() as connection:
        keeper = shop.store.keeper(connection)
        assert services.publish_unpublished(shop.app, keeper) == 0
        eventually(lambda: services.publish_unpublished(shop.app, keeper) == 1, timeout=5, what="the keeper")


def test_an_id_that_is_known_already_is_left_as_it_is(shop: Shop, engine: Engine) -> None:
    first = shop.fulfil.apply_async((1,), task_id="order-1")
    with Session(engine) as session:
        again = shop.fulfil.apply_async((2,), task_id="order-1", transaction=session)
        session.commit()

    assert first.id == again.id == "order-1"
    assert shop.sent() == ["order-1"]


def test_sent_events_follow_the_commit(postgres_url: str, tmp_path: Path) -> None:
    with fresh_database(postgres_url) as url:
        shop = Shop(url, task_send_sent_event=True)
        engine = create_engine(url.replace("postgresql", "postgresql+psycopg"))
        events: list[str] = []
        with shop.app.connection_for_read() as listening:
            receiver = shop.app.events.Receiver(
                listening, handlers={"*": lambda event: events.append(event["uuid"])}
            )
            with receiver.consumer_context() as (draining, _, _), Session(engine) as session:
                shop.fulfil.apply_async((1,), transaction=session)
                session.rollback()
                kept = shop.fulfil.apply_async((1,), transaction=session)
                session.commit()
                draining.drain_events(timeout=10)
        engine.dispose()
        shop.close()

    assert events == [kept.id]


def test_eager_tasks_are_called_at_once(shop: Shop, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shop.app.conf, "task_always_eager", "yes")
    with Session(engine) as session:
        assert shop.fulfil.apply_async((7,), transaction=session).get() == 7

    assert shop.runs() == {}


# -- canvas -----------------------------------------------------------------------------------------------


def test_groups_and_chains_of_durable_tasks_are_stored_with_the_transaction(
    shop: Shop, engine: Engine
) -> None:
    with Session(engine) as session:
        group(shop.fulfil.s(1), chain(shop.fulfil.s(2), shop.plain.s())).apply_async(transaction=session)
        session.rollback()
        fan = group(shop.fulfil.s(1), shop.fulfil.s(2)).apply_async(transaction=session)
        line = chain(shop.fulfil.s(3), shop.plain.s(), shop.fulfil.s()).apply_async(transaction=session)
        session.commit()

    first = line.parent.parent.id
    assert shop.sent() == [*(one.id for one in fan), first] == list(shop.runs())


def test_a_plain_task_in_a_group_is_refused_before_it_is_sent(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session:
        for members in ((shop.plain.s(1), shop.fulfil.s(1)), (shop.fulfil.s(1), shop.plain.s(1))):
            with pytest.raises(durable.TransactionUsageError, match="no durable task"):
                group(*members).apply_async(transaction=session)
        session.rollback()

    assert (shop.runs(), shop.sent()) == ({}, [])


def test_a_chord_is_refused_before_anything_is_stored(shop: Shop, engine: Engine) -> None:
    with Session(engine) as session:
        with pytest.raises(durable.TransactionUsageError, match="A chord takes no"):
            chord([shop.fulfil.s(1), shop.fulfil.s(2)], shop.fulfil.s()).apply_async(transaction=session)
        with pytest.raises(durable.TransactionUsageError, match="A chord takes no"):
            (group(shop.fulfil.s(1), shop.fulfil.s(2)) | shop.fulfil.s()).apply_async(transaction=session)
        session.commit()

    assert (shop.runs(), shop.sent()) == ({}, [])
