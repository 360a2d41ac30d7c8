"""Where broker and store are one Postgres: a run and its message live and die in one commit."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, group
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject
from harness.postgres import fresh_database
from kombu import Consumer
from metering import Meter, metered

import celery_durable as durable
from celery_durable import hooks
from celery_durable.operations import Runs
from celery_durable.store.messages import MessageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE = 1


@pytest.fixture(scope="module")
def meter(postgres_url: str) -> Iterator[Meter]:
    with fresh_database(postgres_url) as url, metered(url) as made:
        yield made


class World:
    """An app on one database, and a worker that is this test."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        url = f"durable+{meter.proxy.url}"
        self.app = Celery("together", broker=url, backend=url, set_as_current=False)
        self.app.conf.update(
            task_default_queue="together", durable_check_interval=3600, durable_autoretry=False
        )
        backend: Any = self.app.backend
        backend._store = meter.store
        self.messages = MessageStore(meter.store.connections, schema="durable")
        self.token = hooks.become_worker()
        with meter.store.connections.dedicated() as connection:
            meter.store.keeper(connection).register(self.token, hostname="worker@one", pid=1, version="0")

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        return self.app.task(
            body, base=durable.DurableTask, name=f"{body.__name__}-{uuid.uuid4()}", **options
        )

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return self.meter.store.connections.once(
            lambda connection: connection.execute(sql.encode()).fetchall()
        )

    def state(self, run_id: str) -> str:
        return str(self.rows(f"select state from durable.run where id = '{run_id}'")[0]["state"])

    def left(self) -> int:
        return len(self.rows("select id from durable.message where queue = 'together'"))

    @contextmanager
    def delivered(self) -> Iterator[Any]:
        """Yield the next message; it is acknowledged, or not, by whoever takes it."""
        found: list[Any] = []
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            queue = self.app.amqp.queues["together"](channel)
            with Consumer(channel, [queue], on_message=found.append, prefetch_count=1):
                while not found:
                    connection.drain_events(timeout=20)
            yield found[0]

    def execute(self, task: Any, message: Any) -> Any:
        """Do what a pool child does with a message."""
        body, headers = message.payload, message.headers
        args, kwargs, embed = body
        request = {**headers, **embed, "properties": message.properties, "is_eager": False}
        request["delivery_info"] = message.delivery_info
        trace = build_tracer(task.name, task, app=self.app, propagate=False)
        return trace(headers["id"], args, kwargs, request)


@pytest.fixture
def world(meter: Meter) -> Iterator[World]:
    made = World(meter)
    made.rows("delete from durable.message returning 1")
    yield made
    made.app.close()


def nothing(_: Any = None) -> None:
    """Do nothing."""


def test_apply_async_stores_the_run_and_its_message_in_one_round_trip_and_one_commit(
    world: World, meter: Meter
) -> None:
    task = world.task(nothing)
    task.delay()

    assert meter.cost(task.delay) == ONE

    assert world.left() == 2
    assert {
        row["state"] for row in world.rows("select state from durable.run where published_at is not null")
    }


def test_a_group_s_runs_and_messages_are_stored_together(world: World, meter: Meter) -> None:
    task = world.task(nothing)
    task.delay()

    members = group(task.si(number) for number in range(10))
    before = world.left()
    assert meter.cost(lambda: members.apply_async(add_to_parent=False)) <= 2
    assert world.left() == before + 10


def test_a_run_that_is_due_later_has_no_message_yet(world: World) -> None:
    task = world.task(nothing)

    task.apply_async(countdown=3600)

    assert world.left() == 0


def test_an_answer_that_is_lost_leaves_one_run_and_at_least_one_message(world: World, meter: Meter) -> None:
    task = world.task(nothing)
    task.delay()
    world.rows("delete from durable.message returning 1")
    fault = meter.proxy.lose_answer("posting", "post")

    result = task.delay()

    assert fault.met == 1
    assert [row["id"] for row in world.rows(f"select id from durable.run where id = '{result.id}'")] == [
        result.id
    ]
    assert world.left() >= 1


def test_a_transaction_that_fails_leaves_neither(world: World, meter: Meter) -> None:
    task = world.task(nothing)
    task.delay()
    world.rows("delete from durable.message returning 1")
    with meter.store.connections.dedicated() as connection:
        connection.execute(
            b"alter table durable.message add constraint broken check (queue <> 'together') not valid"
        )
    try:
        with pytest.raises(Exception, match="broken"):
            task.apply_async(task_id="neither")
    finally:
        with meter.store.connections.dedicated() as connection:
            connection.execute(b"alter table durable.message drop constraint broken")

    assert world.rows("select id from durable.run where id = 'neither'") == []


def test_a_finished_run_takes_its_message_along_and_the_acknowledgement_finds_nothing(
    world: World, meter: Meter
) -> None:
    task = world.task(nothing)
    result = task.delay()
    with world.delivered() as message:
        world.execute(task, message)

        assert world.state(result.id) == "succeeded"
        assert world.left() == 0
        message.ack()
    assert world.left() == 0


@durable.step
def pause() -> None:
    """Be a place where a run stops."""


def fails() -> None:
    raise ValueError


def retries(self: Any) -> None:
    raise self.retry(countdown=60)


def retries_at_once(self: Any) -> None:
    raise self.retry(countdown=0)


def sleeps() -> None:
    durable.sleep(hours=1)


def waits() -> None:
    durable.wait_for_signal("approved")


def is_cancelled(self: Any) -> None:
    pause()
    Runs(self.app).cancel(self.request.id)
    pause()
    pause()


def takes_back() -> None:
    durable.on_rollback(pause)
    raise ValueError


def takes_back_in_vain() -> None:
    durable.on_rollback(_fail)
    raise ValueError


@durable.step(max_retries=0)
def _fail() -> None:
    raise KeyError


def continues(left: int = 1) -> None:
    durable.continue_as(left - 1)


def is_replaced(self: Any) -> None:
    raise self.replace(self.app.signature("elsewhere"))


def is_ignored() -> None:
    raise Ignore


ENDINGS: dict[Callable[..., None], str] = {
    nothing: "succeeded",
    fails: "failed",
    retries: "waiting",
    retries_at_once: "pending",
    sleeps: "waiting",
    waits: "waiting",
    is_cancelled: "cancelled",
    takes_back: "failed",
    takes_back_in_vain: "failed",
    continues: "pending",
    is_replaced: "waiting",
    is_ignored: "cancelled",
}


@pytest.mark.parametrize("body", ENDINGS, ids=lambda body: body.__name__)
def test_whatever_ends_an_attempt_takes_its_message_along(world: World, body: Callable[..., None]) -> None:
    task = world.task(body, bind="self" in signature(body).parameters)
    result = task.delay()
    with world.delivered() as message:
        (held,) = world.rows("select message from durable.claim")
        world.execute(task, message)

        assert world.state(result.id) == ENDINGS[body]
        assert world.rows("select message from durable.claim") == []
        assert world.rows(f"select id from durable.message where id = {held['message']}") == []
        message.ack()


def test_a_run_that_nobody_claimed_in_time_takes_its_message_along(world: World) -> None:
    task = world.task(nothing)
    result = task.apply_async(expires=3600)
    past = "update durable.run set expires_at = durable.clock() - interval '1 s' where id = '{}' returning 1"
    with world.delivered() as message:
        world.rows(past.format(result.id))
        world.execute(task, message)

        assert world.state(result.id) == "cancelled"
        assert world.left() == 0
        message.ack()


def test_a_run_that_waits_for_a_slot_takes_its_message_along(world: World) -> None:
    task = world.task(sleeps, concurrency_key="one", concurrency_limit=1)
    seen = []

    def first() -> None:
        second = task.delay()
        with world.delivered() as message:
            world.execute(task, message)
            seen.extend([world.state(second.id), world.left()])

    holder = world.task(first, concurrency_key="one", concurrency_limit=1)
    holder.delay()
    with world.delivered() as message:
        world.execute(holder, message)

    assert seen == ["waiting", 1], "the message that is left is the holder's own"


def test_a_run_that_is_rejected_to_be_tried_again_keeps_its_message(world: World) -> None:
    def rejects() -> None:
        raise Reject(requeue=True)

    task = world.task(rejects)
    result = task.delay()
    with world.delivered() as message:
        world.execute(task, message)
        assert world.state(result.id) == "pending"
        message.requeue()
    with world.delivered() as again:
        assert again.headers["id"] == result.id
        assert again.delivery_info["redelivered"]
        again.ack()


def test_a_wait_that_is_over_at_once_keeps_the_message_until_the_run_has_finished(world: World) -> None:
    left: list[int] = []

    def waiter() -> None:
        durable.wait_for_signal("approved")
        left.append(world.left())

    task = world.task(waiter)
    result = task.delay()
    durable.send_signal(result.id, "approved", app=world.app)
    with world.delivered() as message:
        world.execute(task, message)

        assert left == [1]
        assert world.left() == 0


def test_a_message_of_another_database_with_the_same_numbers_is_left_alone(world: World) -> None:
    task = world.task(nothing)
    task.delay()
    with world.delivered() as message:
        message.properties["delivery_info"]["durable-claim"][0] = "another"
        world.execute(task, message)

        assert world.left() == 1
        message.ack()
