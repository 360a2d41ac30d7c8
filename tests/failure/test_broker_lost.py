"""The broker forgets everything, or is not there at all."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from celery import group
from harness.waiting import eventually
from kombu import Connection
from kombu.exceptions import OperationalError

from celery_durable import batching
from celery_durable.envelope import HEADER, breaker, publish_stored
from celery_durable.store.bulk import ROWS
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.brokers import PrivateRedis
    from harness.world import World

QUICKLY = {"durable_check_interval": 1.0, "durable_lost_after": 60.0}


@pytest.fixture
def redis_world(new_world: Callable[..., Any], private_redis: PrivateRedis) -> Iterator[World]:
    with new_world(broker=private_redis.url, **QUICKLY) as world:
        yield world


def queued_behind_a_busy_worker(world: World) -> list[Any]:
    """One run at work, some in the queue, one waiting for its retry."""
    world.worker()
    waiting = world.send("patient", 1.0)
    world.tables.wait_for_state(waiting.id, "waiting")
    world.gates.close("busy")
    busy = world.send("flow", ["busy", "after"])
    world.ledger.wait_for("start", "busy", busy.id)
    return [busy, waiting, *(world.send("flow", ["queued"]) for _ in range(10))]


def all_done_once(world: World, results: list[Any]) -> None:
    world.tables.wait_until_all_final([result.id for result in results], timeout=30)
    assert {world.tables.state(result.id) for result in results} == {"succeeded"}
    for result in results:
        names = world.ledger.names(run=result.id)
        assert len(names) == len(set(names))
        assert world.tables.run(result.id)["recoveries"] == 0


def test_redis_emptied_with_runs_queued_at_work_and_waiting_loses_none(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    results = queued_behind_a_busy_worker(redis_world)

    private_redis.client.flushall()
    redis_world.gates.open("busy")

    all_done_once(redis_world, results)


def test_redis_killed_and_started_empty_with_runs_queued_at_work_and_waiting_loses_none(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    results = queued_behind_a_busy_worker(redis_world)

    private_redis.kill()
    redis_world.gates.open("busy")
    redis_world.tables.wait_for_state(results[0].id, "succeeded")
    private_redis.start()

    all_done_once(redis_world, results)


def test_a_worker_that_has_read_half_of_a_result_when_its_broker_is_lost_reads_the_rest(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    worker = redis_world.worker(concurrency=1)
    redis_world.gates.close("shout")
    redis_world.send("shout", 4_000_000)
    redis_world.ledger.wait_for("start", "shout")
    (child,) = (child for child in worker.children() if child.ppid() == worker.pid)

    main = psutil.Process(worker.pid)
    main.suspend()
    redis_world.gates.open("shout")
    eventually(
        lambda: writes_into_a_pipe(child.pid), what="the child to tell what the main process does not hear"
    )
    private_redis.kill()
    main.resume()
    worker.wait_for_log("Connection to broker lost")
    private_redis.start()

    assert redis_world.send("not_durable", "its child is free").get(timeout=20) == "its child is free"


def writes_into_a_pipe(pid: int) -> bool:
    """Whether a process waits for room in a pipe."""
    return "pipe_write" in Path(f"/proc/{pid}/wchan").read_text()


def test_a_rabbitmq_queue_purged_with_runs_queued_at_work_and_waiting_loses_none(
    new_world: Callable[..., Any],
) -> None:
    from harness.brokers import service

    with new_world(broker=service("DURABLE_TEST_AMQP"), **QUICKLY) as world:
        results = queued_behind_a_busy_worker(world)

        with Connection(world.setup.broker) as connection, connection.channel() as channel:
            eventually(lambda: channel.queue_purge(world.setup.queue), what="messages to purge")
        world.gates.open("busy")

        all_done_once(world, results)


def test_a_thousand_runs_are_accepted_quickly_without_a_broker_and_done_when_it_is_back(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    redis_world.worker(pool="threads", concurrency=4)
    private_redis.kill()

    began = time.monotonic()
    results = [redis_world.send("plain", str(number)) for number in range(1000)]
    took = time.monotonic() - began
    assert redis_world.tables.one("select count(*) from durable.run where state = 'pending'") == 1000
    private_redis.start()

    assert took < 30
    redis_world.tables.wait_until_all_final([result.id for result in results], timeout=90)
    assert redis_world.tables.one("select count(*) from durable.run where state = 'succeeded'") == 1000
    assert redis_world.tables.one("select max(attempt) from durable.run") == 1
    assert redis_world.ledger.count("body", "plain") == 1000


def test_a_caller_that_asked_for_it_is_told_that_the_broker_is_away_and_no_run_is_left(
    new_world: Callable[..., Any], private_redis: PrivateRedis
) -> None:
    with new_world(broker=private_redis.url, durable_publish_errors="raise") as world:
        world.send("plain", "there is a table now")
        private_redis.kill()

        for _ in range(3):  # also while the breaker keeps callers from trying
            with pytest.raises((OperationalError, OSError)):
                world.send("plain", "lost")

        assert world.tables.one("select count(*) from durable.run") == 1


@pytest.mark.parametrize("told", [False, True])
def test_a_group_whose_broker_dies_between_its_batches_loses_no_member_that_its_caller_is_not_told_of(
    new_world: Callable[..., Any], private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch, *, told: bool
) -> None:
    monkeypatch.setattr(batching, "_LINGER", 60.0)  # however slow the machine
    errors = "raise" if told else "store"
    url = private_redis.url
    with new_world(broker=url, durable_publish_errors=errors, task_publish_retry=False) as world:
        plain = world.app.tasks["plain"]

        def members() -> Iterator[Any]:
            for number in range(ROWS + 20):
                if number == ROWS + 10:
                    assert private_redis.messages(world.setup.queue)[0] == ROWS
                    private_redis.kill()
                yield plain.s(str(number))

        with pytest.raises(OperationalError) if told else nullcontext():
            group(members()).apply_async()

        left = "select count(published_at) as sent, count(*) as stored from durable.run"
        assert world.tables.rows(left) == [{"sent": ROWS, "stored": ROWS + (0 if told else 20)}]


def stored_runs(world: World, number: int) -> list[Stored]:
    """The messages of so many runs that wait for a time that is far away, as the keeper publishes them."""
    ids = [world.app.tasks["flow"].apply_async((["one"],), countdown=3600).id for _ in range(number)]
    return [
        Stored(one, bytes(run["message"]), bytes(run["body"]))
        for one in ids
        for run in [world.tables.run(one)]
    ]


def as_plain(stored: Stored) -> Stored:
    """The message of a task without a run."""
    how = json.loads(stored.message)
    del how["headers"][HEADER]
    return replace(stored, message=json.dumps(how).encode())


def test_messages_are_published_together_and_each_arrives(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    messages = stored_runs(redis_world, 100)
    publish_stored(redis_world.app, messages[:1])  # connected, and the queue declared
    before = private_redis.client.info("stats")["total_reads_processed"]

    assert publish_stored(redis_world.app, messages[1:]) == []

    assert private_redis.client.info("stats")["total_reads_processed"] - before < 20
    assert private_redis.messages(redis_world.setup.queue) == (100, 0)


def test_the_members_of_a_group_are_published_together(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    members = group(redis_world.app.tasks["flow"].s([f"{number}"]) for number in range(100))
    redis_world.send("flow", ["first"])
    before = private_redis.client.info("stats")["total_reads_processed"]

    members.apply_async()

    assert private_redis.client.info("stats")["total_reads_processed"] - before < 20
    assert private_redis.messages(redis_world.setup.queue) == (101, 0)


def test_messages_of_plain_tasks_are_published_one_by_one_for_none_may_be_sent_twice(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    first, *_ = messages = [as_plain(one) for one in stored_runs(redis_world, 30)]
    publish_stored(redis_world.app, [first])
    before = private_redis.client.info("stats")["total_reads_processed"]

    assert publish_stored(redis_world.app, messages) == []

    assert private_redis.client.info("stats")["total_reads_processed"] - before >= 30


def test_messages_that_were_to_be_published_together_over_a_connection_that_is_gone_arrive_all_the_same(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    messages = stored_runs(redis_world, 100)
    publish_stored(redis_world.app, messages)

    private_redis.kill()
    private_redis.start()

    assert publish_stored(redis_world.app, messages) == []
    assert private_redis.messages(redis_world.setup.queue) == (100, 0)


def test_a_broker_that_takes_a_part_of_what_is_published_together_is_not_believed_to_have_all(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    messages = stored_runs(redis_world, 300)
    publish_stored(redis_world.app, messages[:1])
    used = int(private_redis.client.info("memory")["used_memory"])
    private_redis.client.config_set("maxmemory", used + 100_000)

    failed = publish_stored(redis_world.app, messages[1:])

    taken, _ = private_redis.messages(redis_world.setup.queue)
    assert 1 < taken < 300
    assert taken >= 300 - len(failed)
    assert breaker.open
    private_redis.client.config_set("maxmemory", 0)
    breaker.worked()
    assert publish_stored(redis_world.app, [one for one in messages if one.id in failed]) == []
    world_queue = redis_world.setup.queue
    left = private_redis.client.lrange(f"{world_queue}:{world_queue}", 0, -1)
    assert {one.id for one in messages} == {json.loads(line)["headers"]["id"] for line in left}


def test_a_broker_that_is_away_takes_nothing_of_what_is_published_together(
    redis_world: World, private_redis: PrivateRedis
) -> None:
    messages = stored_runs(redis_world, 10)
    private_redis.kill()

    assert publish_stored(redis_world.app, messages) == [one.id for one in messages]
    assert breaker.open
