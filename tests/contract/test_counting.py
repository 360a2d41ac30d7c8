"""The cost of each operation, as the design promises it: a change for the worse is a bug.

Where a test says "one", it means one network round trip and one commit.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from answering import answering
from celery import Celery, Task, chain, chord, group
from celery.app.trace import build_tracer
from contending import step_write
from harness.wire import on_the_wire
from inspecting import Worker, execute
from metering import Meter, metered

import celery_durable as durable
from celery_durable import batching, hooks
from celery_durable.executor import journal
from celery_durable.http import DurableTransport
from celery_durable.run import RunState
from celery_durable.store.runs import Finish, Release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE, FREE = 1, 0


@pytest.fixture(scope="module")
def meter(postgres_url: str) -> Iterator[Meter]:
    """Return a meter on a database of this module's own."""
    name = f"durable_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        try:
            with metered(urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))) as made:
                yield made
        finally:
            server.execute(f"drop database {name} with (force)".encode())


def nothing(_: Any = None) -> None:
    """Do nothing, with whatever is given."""


class World:
    """An app whose tasks run here, through Celery's own tracer, as in a pool child."""

    def __init__(self, meter: Meter) -> None:
        self.app = Celery("metered", broker="memory://", backend=f"durable+{meter.proxy.url}")
        self.app.conf.update(task_default_queue="metered", durable_check_interval=3600)
        backend: Any = self.app.backend
        backend._store = meter.store  # whose statements are prepared already
        self.token = hooks.become_worker()
        with meter.store.connections.dedicated() as connection:
            meter.store.keeper(connection).register(self.token, hostname="worker@one", pid=1, version="0")

    def task(self, body: Callable[..., Any], **options: Any) -> Any:
        given = {"base": durable.DurableTask, "name": f"{body.__name__}-{uuid.uuid4()}", **options}
        return self.app.task(body, **given)

    def deliver(self, task: Any, run_id: str, *args: Any, retval: bool = True, **request: Any) -> Any:
        """Execute one message of a run."""
        trace = build_tracer(task.name, task, app=self.app, propagate=False)
        headers = {"id": run_id, "task": task.name, "durable-run": 0, "delivery_info": {}, "retries": 0}
        outcome = trace(run_id, list(args), {}, {**headers, **request})
        return outcome[0] if retval else outcome

    def run(self, task: Any, *args: Any) -> Any:
        return self.deliver(task, task.delay(*args).id, *args)


@pytest.fixture
def world(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return an app on the metered database; the environment is as before at the end."""
    for name in ("CELERY_DURABLE_WORKER", "CELERY_DURABLE_DRAIN"):
        monkeypatch.setenv(name, "")
    made = World(meter)
    yield made
    made.app.close()


@durable.step
def double(number: int) -> int:
    return 2 * number


@durable.step(max_retries=2, default_retry_delay=0, autoretry_for=(ValueError,))
def always_wrong() -> None:
    message = "no"
    raise ValueError(message)


@durable.step(at_most_once=True)
def charge() -> str:
    return "charged"


@durable.step
def ask(url: str) -> int:
    with httpx.Client(transport=DurableTransport()) as client:
        return client.post(url).status_code


@durable.step(commit="async")
def cheap() -> str:
    return "cheap"


def test_a_fresh_run_of_ten_steps_takes_thirteen_round_trips_and_thirteen_commits(
    world: World, meter: Meter
) -> None:
    def ten() -> int:
        return sum(double(number) for number in range(10))

    task = world.task(ten)
    world.run(task)  # prepares the statements

    assert meter.cost(lambda: world.run(task)) == 13


@pytest.mark.parametrize("options", [{}, {"countdown": 60, "expires": 3600}])
def test_enqueueing_takes_one_round_trip_and_one_commit(
    world: World, meter: Meter, options: dict[str, float]
) -> None:
    task = world.task(nothing)
    task.apply_async(**options)

    assert meter.cost(lambda: task.apply_async(**options)) == ONE


def messages(world: World) -> int:
    """Take all messages out of the broker; return how many there were."""
    with world.app.connection_for_read() as connection, connection.channel() as channel:
        return int(channel.queue_purge("metered"))


@pytest.mark.parametrize("losing", [False, True])
def test_a_group_takes_one_round_trip_and_one_commit_for_each_five_hundred_members(
    world: World, meter: Meter, monkeypatch: pytest.MonkeyPatch, *, losing: bool
) -> None:
    monkeypatch.setattr(batching, "_LINGER", 60.0)  # however slow the machine
    task = world.task(nothing)
    members = group(task.s(number) for number in range(1200))
    members.apply_async()
    messages(world)
    before = meter.proxy.executions("runs", "enqueue_bulk")
    results: list[Any] = []
    fault = meter.proxy.lose_answer("runs", "enqueue_bulk") if losing else None

    cost = meter.cost(lambda: results.append(members.apply_async()))

    assert meter.proxy.executions("runs", "enqueue_bulk") - before == (4 if losing else 3)
    (row,) = execute(
        meter.store,
        'select count(*) as runs, count(published_at) as published from durable.run where "group" = %s',
        results[0].id,
    )
    assert row == {"runs": 1200, "published": 1200}
    assert messages(world) == 1200
    if fault is None:
        assert cost == 3


@pytest.mark.parametrize("steps", [0, 10, 1000])
def test_a_claim_with_its_whole_history_takes_one_round_trip_and_one_commit(meter: Meter, steps: int) -> None:
    worker = Worker(meter.store)
    worker.start()
    run_id = worker.enqueue()
    execute(
        meter.store,
        "insert into durable.checkpoint"
        " (run_key, key, seq, outcome, output, digest, arguments, fence, attempt, tries, seconds)"
        " select r.key, 'step#' || n, n, 'ok', '1', 'd', '()', gen_random_uuid(), 1, 1, 0.1"
        " from durable.run r, generate_series(1, %s) n where r.id = %s",
        steps,
        run_id,
    )
    found: list[Any] = []

    def claim() -> None:
        found.append(
            meter.store.runs.claim(run_id, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)
        )

    assert meter.cost(claim) == ONE
    assert len(found[0][1]) == steps


def inside(world: World, meter: Meter, work: Callable[[], Any], **options: Any) -> list[int]:
    """Return what `work` costs at its first and second call in a body, and at the replay of both."""
    costs: list[int] = []
    raised: list[bool] = []

    def body(self: Task[..., Any]) -> None:
        def quietly() -> None:
            with suppress(ValueError):
                work()

        costs.extend(meter.cost(quietly) for _ in range(2))
        if not raised:
            raised.append(True)
            raise self.retry(countdown=0)

    task = world.task(body, bind=True, **options)
    run_id = task.delay().id
    world.deliver(task, run_id)
    world.deliver(task, run_id)
    assert len(costs) == 4
    return costs[1:]


def test_a_step_takes_one_round_trip_and_one_commit_and_its_replay_nothing(
    world: World, meter: Meter
) -> None:
    assert inside(world, meter, lambda: double(1)) == [ONE, FREE, FREE]


def test_a_step_that_begins_late_asks_first_with_one_more(
    world: World, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_A_WHILE", 0.0)

    assert inside(world, meter, lambda: double(1)) == [2 * ONE, FREE, FREE]


def test_a_step_that_calls_others_keeps_the_evidence_without_a_round_trip_of_its_own(
    world: World, meter: Meter
) -> None:
    with answering() as server:
        assert inside(world, meter, lambda: ask(server.url)) == [ONE, FREE, FREE]
        assert len(server.received) == 2
    assert execute(meter.store, "select count(*) from durable.event where kind = 'call'")[0]["count"] == 2


def test_a_step_that_need_not_be_flushed_takes_one_round_trip(world: World, meter: Meter) -> None:
    assert inside(world, meter, cheap) == [ONE, FREE, FREE]


def test_each_failed_try_takes_one_round_trip_and_one_commit(world: World, meter: Meter) -> None:
    first, *_ = inside(world, meter, always_wrong)

    assert first == 3


def test_an_at_most_once_step_takes_two_round_trips_and_two_commits(world: World, meter: Meter) -> None:
    assert inside(world, meter, charge) == [2, FREE, FREE]


@pytest.mark.parametrize("statements", [0, 3])
def test_a_transaction_step_takes_two_round_trips_beside_its_statements_and_one_commit(
    world: World, meter: Meter, statements: int
) -> None:
    @durable.transaction
    def look(connection: psycopg.Connection[Any]) -> None:
        for _ in range(statements):
            connection.execute("select 1", prepare=True)

    trips: list[int] = []
    commits: list[int] = []

    def body() -> None:
        for _ in range(2):
            before, sent = meter.trips, len(meter.proxy.statements)
            look()
            trips.append(meter.trips - before)
            commits.append(meter.proxy.statements[sent:].count("commit"))

    world.run(world.task(body))

    assert (trips[1], commits[1]) == (2 + statements, 1)


def test_starting_a_child_takes_one_round_trip_and_one_commit_and_its_replay_nothing(
    world: World, meter: Meter
) -> None:
    child = world.task(nothing)

    assert inside(world, meter, child.delay) == [ONE, FREE, FREE]


def test_values_kept_for_a_replay_cost_nothing_of_their_own(world: World, meter: Meter) -> None:
    assert (
        inside(world, meter, lambda: (durable.now(), durable.uuid4(), durable.random().random()))
        == [FREE] * 3
    )


def finished(world: World, meter: Meter, send: Callable[[Any], Any], **options: Any) -> int:
    """Return what the end of a run costs, after its body."""
    before: list[int] = []

    def body() -> int:
        before.append(meter.trips)
        return 1

    task = world.task(body, **options)
    for _ in range(2):
        result = send(task)
        request = headers_of(meter, result.id)
        world.deliver(task, result.id, **request)
    return meter.trips - before[-1]


def headers_of(meter: Meter, run_id: str) -> dict[str, Any]:
    """Return what Celery's message of a run says of its callbacks, its chain and its chord."""
    (row,) = execute(meter.store, "select message, body from durable.run where id = %s", run_id)
    headers, embed = json.loads(bytes(row["message"]))["headers"], json.loads(bytes(row["body"]))[2]
    of_body = {name: embed[name] for name in ("callbacks", "chain", "chord")}
    return {**of_body, "group": headers["group"], "group_index": headers["group_index"], "root_id": run_id}


def test_a_finish_takes_one_round_trip_and_one_commit(world: World, meter: Meter) -> None:
    assert finished(world, meter, lambda task: task.delay()) == ONE


def test_a_finish_that_starts_the_next_of_its_chain_takes_no_more(world: World, meter: Meter) -> None:
    following = world.task(nothing)

    def send(task: Any) -> Any:
        return chain(task.si(), following.s()).apply_async().parent

    assert finished(world, meter, send) == ONE


def test_a_run_in_a_long_chain_takes_no_more_than_another(world: World, meter: Meter) -> None:
    task = world.task(nothing)
    links = chain(*[task.si()] * 30)
    links.apply_async()
    started: list[Any] = []

    assert meter.cost(lambda: started.append(links.apply_async())) == ONE

    above = started[0]
    while above.parent is not None:
        above = above.parent
    tree = run_id = above.id
    for _ in range(4):  # the first two prepare the statements
        request = {**headers_of(meter, run_id), "root_id": tree}
        costs = meter.cost(lambda run_id=run_id, request=request: world.deliver(task, run_id, **request))  # type: ignore[misc]
        (row,) = execute(meter.store, "select id from durable.run where parent = %s", run_id)
        run_id = row["id"]
    assert costs == 2


def test_a_long_chain_whose_answer_was_lost_is_stored_and_sent_once(world: World, meter: Meter) -> None:
    task = world.task(nothing)
    messages(world)
    before = count_of_links(meter)
    fault = meter.proxy.lose_answer("chains", "enqueue_chain")

    result = chain(*[task.si()] * 30).apply_async()

    assert fault.met == 1
    assert count_of_links(meter) - before == 29
    assert messages(world) == 1
    assert result.parent is not None


def count_of_links(meter: Meter) -> int:
    (row,) = execute(meter.store, "select count(*) as links from durable.chain_link")
    return int(row["links"])


def test_a_finish_with_a_link_that_is_a_run_takes_no_more(world: World, meter: Meter) -> None:
    linked = world.task(nothing)

    assert finished(world, meter, lambda task: task.apply_async(link=linked.s())) == ONE


def test_a_finish_that_starts_a_group_takes_one_statement_for_each_five_hundred_members(
    world: World, meter: Meter
) -> None:
    member = world.task(nothing)
    many = group(member.s() for _ in range(1200))
    before = meter.proxy.executions("runs", "enqueue_bulk")

    assert finished(world, meter, lambda task: task.apply_async(link=many)) == ONE
    assert meter.proxy.executions("runs", "enqueue_bulk") - before == 2 * 3


def test_a_finish_with_a_plain_link_takes_one_more_when_the_broker_has_it(world: World, meter: Meter) -> None:
    """The link's message is kept with the finish and forgotten once it is sent."""
    plain = world.task(nothing, base=Task)

    assert finished(world, meter, lambda task: task.apply_async(link=plain.s())) == 2


def test_a_finish_that_is_a_part_of_a_chord_takes_no_more_but_two_commits(world: World, meter: Meter) -> None:
    """The part is stored with the finish; behind their commit, in the same trip, is the look at the chord."""
    body = world.task(nothing)

    def send(task: Any) -> Any:
        return chord([task.si(), task.si()], body.s()).apply_async().parent.results[0]

    assert finished(world, meter, send) == ONE
    *_, begin, finish, part, commit, look = meter.proxy.statements
    assert (begin, commit) == ("begin", "commit")
    assert [finish, part, look] == [
        on_the_wire("runs", "finish"),
        on_the_wire("chords", "part"),
        on_the_wire("chords", "look"),
    ]


def test_the_last_part_of_a_chord_starts_the_body_in_five_more(world: World, meter: Meter) -> None:
    """The results are read; the end of the chord and its body are one transaction of four."""
    body = world.task(nothing)

    def send(task: Any) -> Any:
        return chord([task.si()], body.s()).apply_async().parent.results[0]

    assert finished(world, meter, send) == 1 + 1 + 4


def test_leaving_a_worker_takes_one_round_trip_and_one_commit(meter: Meter) -> None:
    worker = Worker(meter.store)
    release = Release("retry", timedelta(minutes=1), "retry", retries=1, discard="errors")
    worker.retry(worker.start())
    claim = worker.start()
    meter.store.runs.checkpoint(claim.key, claim.fence, step_write("parse", 1, "error"))

    assert meter.cost(lambda: meter.store.runs.release(claim.key, claim.fence, release)) == ONE


def test_a_retry_takes_one_round_trip_beside_the_claim(world: World, meter: Meter) -> None:
    def fails(self: Task[..., Any]) -> None:
        raise self.retry(countdown=60)

    task = world.task(fails, bind=True)
    world.run(task)
    run_id = task.delay().id

    assert meter.cost(lambda: world.deliver(task, run_id)) == 2


def test_a_heartbeat_takes_one_round_trip_and_one_commit(meter: Meter) -> None:
    worker = Worker(meter.store)

    def beat(connection: Any) -> None:
        assert meter.store.keeper(connection).beat(worker.token, reserved=0) is not None

    meter.store.connections.once(beat)
    assert meter.cost(lambda: meter.store.connections.once(beat)) == ONE


def test_a_message_that_is_late_takes_two_round_trips_and_changes_nothing(world: World, meter: Meter) -> None:
    """The claim, and the question why it was refused."""
    task = world.task(nothing)
    run_id = task.delay().id
    world.deliver(task, run_id)
    world.deliver(task, run_id)

    assert meter.cost(lambda: world.deliver(task, run_id)) == 2


def test_a_write_that_changes_nothing_any_more_takes_one_round_trip(meter: Meter) -> None:
    worker = Worker(meter.store)
    claim = worker.start()
    outcome = Finish(RunState.SUCCEEDED, b"1", "application/json")
    meter.store.runs.finish(claim.key, claim.fence, outcome)

    assert meter.cost(lambda: meter.store.runs.finish(claim.key, claim.fence, outcome)) == ONE


def suspended(world: World, meter: Meter, wait: Callable[[], Any]) -> int:
    """Return what a wait that leaves the worker costs, from its call on."""
    before: list[int] = []

    def body() -> None:
        before.append(meter.trips)
        wait()

    task = world.task(body)
    for _ in range(3):  # prepares the statements, those of the message that follows, too
        world.run(task)
    return meter.trips - before[-1]


def test_going_to_sleep_takes_one_round_trip(world: World, meter: Meter) -> None:
    assert suspended(world, meter, lambda: durable.sleep(hours=1)) == ONE


def test_waiting_for_a_signal_takes_one_round_trip(world: World, meter: Meter) -> None:
    assert suspended(world, meter, lambda: durable.wait_for_signal("approved")) == ONE


@pytest.mark.parametrize("children", [1, 10, 1500])
def test_starting_children_and_waiting_for_them_takes_one_round_trip(
    world: World, meter: Meter, children: int
) -> None:
    task = world.task(nothing)

    assert suspended(world, meter, lambda: durable.map(task, range(children))) == ONE


def test_sending_a_signal_takes_one_round_trip(world: World, meter: Meter) -> None:
    run_id = world.task(lambda_named("body", lambda: durable.wait_for_signal("approved"))).delay().id
    for number in range(2):
        durable.send_signal(run_id, "approved", number, app=world.app)

    assert meter.cost(lambda: durable.send_signal(run_id, "approved", 2, app=world.app)) == ONE


def lambda_named(name: str, body: Callable[[], Any]) -> Callable[[], Any]:
    body.__name__ = name
    return body


def test_the_end_of_a_child_takes_one_round_trip_also_when_it_wakes_its_parent(
    world: World, meter: Meter
) -> None:
    before: list[int] = []

    def child(_: int) -> None:
        before.append(meter.trips)

    task = world.task(child)
    costs: list[int] = []
    for _ in range(3):
        world.run(world.task(lambda_named("parent", lambda: durable.map(task, range(2)))))
        rows = execute(
            meter.store,
            "select id from durable.run where task = %s and state = 'pending' order by key",
            task.name,
        )
        for number, row in enumerate(rows):
            world.deliver(task, row["id"], number)
            costs.append(meter.trips - before[-1])

    assert costs[-2:] == [ONE, ONE]


def test_a_replayed_wait_takes_nothing(world: World, meter: Meter) -> None:
    def rested() -> Any:
        durable.sleep(milliseconds=2)
        return durable.wait_for_signal("approved")

    costs: list[int] = []
    raised: list[bool] = []

    def body(self: Task[..., Any]) -> None:
        costs.append(meter.cost(rested))
        if not raised:
            raised.append(True)
            raise self.retry(countdown=0)

    task = world.task(body, bind=True)
    run_id = task.delay().id
    durable.send_signal(run_id, "approved", 1, app=world.app)
    world.deliver(task, run_id)
    world.deliver(task, run_id)

    assert costs[1] == FREE
