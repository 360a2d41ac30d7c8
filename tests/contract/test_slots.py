"""Slots: never more runs of a key than it allows, whoever claims meanwhile; freed by any end; in order."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import background, keeper, move_clock, together, wait_until_blocked
from delivering import World, delivering
from inspecting import Worker, execute, open_transaction

import celery_durable as durable
from celery_durable.operations import Runs
from celery_durable.run import Refusal
from celery_durable.store.writes import Release, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore

CHECK = timedelta(seconds=30)


class Customer(Worker):
    """A worker that claims runs which need a slot, and writes down which others were woken."""

    def __init__(self, store: Store, hostname: str = "worker@one") -> None:
        super().__init__(store, hostname)
        self.woken: list[str] = []

    def ask(self, run_id: str) -> Any:
        parameters = {
            "id": run_id,
            "task": None,
            "fence": uuid.uuid4(),
            "token": self.token,
            "pid": 7,
            "revision": 0,
        }
        outcome, woken = self.store.slots.claim(parameters, None)
        self.woken += [one.id for one in woken]
        return outcome if isinstance(outcome, Refusal) else outcome[0]

    def need(self, run_id: str, *, limit: int | None = 1, rank: int = 0, **more: Any) -> str:
        return self.enqueue(run_id, slot=Slot("key", limit, rank=rank, **more))

    def hold(self, run_id: str, **more: Any) -> Any:
        claim = self.ask(self.need(run_id, **more))
        assert not isinstance(claim, Refusal)
        return claim

    def grant(self) -> list[str]:
        return [one.id for one in self.store.slots.grant("key")]


def states(store: Store) -> dict[str, tuple[str, str | None]]:
    rows = execute(store, "select id, state, reason from durable.run order by key")
    return {row["id"]: (row["state"], row["reason"]) for row in rows}


def test_a_run_that_finds_no_slot_waits_for_one_and_costs_no_worker(store: Store) -> None:
    worker = Customer(store)
    worker.hold("a")

    assert worker.ask(worker.need("b")) is Refusal.SLOT
    assert states(store)["b"] == ("waiting", "slot")


def test_a_plain_claim_refuses_a_run_that_needs_a_slot(store: Store) -> None:
    """A message without the header must not get past the limit."""
    worker = Customer(store)
    worker.need("a")

    outcome = store.runs.claim("a", fence=uuid.uuid4(), token=worker.token, pid=7, revision=0)

    assert outcome is Refusal.SLOTTED
    assert states(store)["a"] == ("pending", None)


def test_claims_at_the_same_moment_get_as_many_slots_as_there_are(store: Store) -> None:
    worker = Customer(store)
    ids = [worker.need(f"run-{number}", limit=3) for number in range(8)]

    outcomes = together(*(lambda run_id=run_id: worker.ask(run_id) for run_id in ids))  # type: ignore[misc]

    assert Counter(isinstance(outcome, Refusal) for outcome in outcomes) == {False: 3, True: 5}
    assert Counter(states(store).values())["running", None] == 3


def test_a_claim_that_waits_for_another_one_sees_the_slot_taken(store: Store) -> None:
    """Its first statement is older than the other's commit: it must look after it has the lock."""
    worker = Customer(store)
    worker.need("a")
    worker.need("b")
    with open_transaction(store) as first:
        first.execute("select pg_advisory_xact_lock(472193, hashtext('key'))")
        asking = background(lambda: worker.ask("b"))
        wait_until_blocked(store)
        first.execute(
            "update durable.run set state = 'running', due = null, fence = gen_random_uuid(), worker = %s,"
            " claimed_at = now() where id = 'a'",
            (worker.id,),
        )

    assert asking.result(10) is Refusal.SLOT


@pytest.mark.parametrize("how", ["succeed", "fail", "retry", "released", "cancel", "killed"])
def test_a_slot_is_free_however_its_run_leaves(store: Store, how: str) -> None:
    other, worker = Customer(store, "worker@two"), Customer(store)
    claim = other.hold("a")
    worker.ask(worker.need("b"))
    assert worker.grant() == []

    if how == "released":
        store.runs.release(claim.key, claim.fence, Release("released", timedelta(0)))
    elif how == "cancel":
        store.runs.revoke("a", token=other.token, terminated=True)
    elif how == "killed":
        other.vanish()  # nobody has recovered the run yet: a holder without a live worker holds nothing
    else:
        getattr(other, how)(claim)

    assert worker.grant() == ["b"]
    assert not isinstance(worker.ask("b"), Refusal)


def test_who_waits_is_woken_by_rank_and_then_by_age(store: Store) -> None:
    worker = Customer(store)
    claim = worker.hold("first")
    for run_id, rank in (("old", 0), ("urgent", 5), ("new", 0), ("urgent too", 5), ("late", -1)):
        assert worker.ask(worker.need(run_id, rank=rank)) is Refusal.SLOT
    order = []
    while True:
        worker.succeed(claim)
        woken = worker.grant()
        if not woken:
            break
        order += woken
        claim = worker.ask(woken[0])

    assert order == ["urgent", "urgent too", "old", "new", "late"]


def test_a_newcomer_does_not_pass_those_who_wait(store: Store) -> None:
    """The slot is free, and nobody has woken the first one yet."""
    worker = Customer(store)
    claim = worker.hold("first")
    worker.ask(worker.need("waiting"))
    worker.succeed(claim)

    assert worker.ask(worker.need("newcomer")) is Refusal.SLOT
    assert worker.woken == ["waiting"]
    assert not isinstance(worker.ask("waiting"), Refusal)


def test_a_newcomer_with_a_higher_rank_goes_first(store: Store) -> None:
    worker = Customer(store)
    claim = worker.hold("first")
    worker.ask(worker.need("waiting"))
    worker.succeed(claim)

    assert not isinstance(worker.ask(worker.need("urgent", rank=1)), Refusal)


def test_a_woken_run_keeps_its_slot_until_it_is_claimed(store: Store) -> None:
    worker = Customer(store)
    claim = worker.hold("first")
    worker.ask(worker.need("second"))
    worker.succeed(claim)
    assert worker.grant() == ["second"]

    assert worker.ask(worker.need("third")) is Refusal.SLOT
    assert worker.grant() == []
    assert not isinstance(worker.ask("second"), Refusal)


def test_a_woken_run_whose_message_does_not_arrive_holds_up_nobody_for_long(store: Store) -> None:
    worker = Customer(store)
    claim = worker.hold("first")
    worker.ask(worker.need("lost"))
    worker.ask(worker.need("next"))
    worker.succeed(claim)
    assert worker.grant() == ["lost"]

    move_clock(store, "31 seconds")
    later = Customer(store)

    assert later.grant() == ["next"]
    assert not isinstance(later.ask("next"), Refusal)
    assert later.ask("lost") is Refusal.SLOT


def test_a_repeated_claim_recognises_itself_though_there_is_no_slot_any_more(store: Store) -> None:
    worker = Customer(store)
    parameters = {
        "id": worker.need("a"),
        "task": None,
        "fence": uuid.uuid4(),
        "token": worker.token,
        "pid": 7,
    }
    parameters["revision"] = 0
    first, _ = store.slots.claim(parameters, None)
    worker.ask(worker.need("before", rank=5))
    again, _ = store.slots.claim(parameters, None)

    assert not isinstance(first, Refusal)
    assert not isinstance(again, Refusal)
    assert first[0].attempt == again[0].attempt == 1


def test_a_run_that_waits_for_a_slot_expires_as_any_other(store: Store) -> None:
    worker = Customer(store)
    worker.hold("a")
    worker.ask(worker.enqueue("b", slot=Slot("key", 1), expires=timedelta(seconds=60)))
    move_clock(store, "61 seconds")
    later = Customer(store)
    with keeper(store) as statements:
        assert [one.id for one in statements.wake(10)] == ["b"]

    assert later.ask("b") is Refusal.EXPIRED
    assert states(store)["b"] == ("cancelled", "expired")


def test_only_so_many_runs_of_a_key_start_in_a_while(store: Store) -> None:
    worker = Customer(store)
    rate: dict[str, Any] = {"limit": None, "rate": 2, "period": timedelta(seconds=60)}

    outcomes = together(
        *(lambda n=n: worker.ask(worker.need(f"run-{n}", **rate)) for n in range(5))  # type: ignore[misc]
    )
    assert Counter(isinstance(outcome, Refusal) for outcome in outcomes) == {False: 2, True: 3}
    for outcome in outcomes:
        if not isinstance(outcome, Refusal):
            worker.succeed(outcome)
    assert worker.grant() == []

    move_clock(store, "61 seconds")
    later = Customer(store)
    woken = later.grant()
    assert len(woken) == 2
    assert not any(isinstance(later.ask(run_id), Refusal) for run_id in woken)
    assert later.grant() == []


def test_the_keeper_knows_when_a_rate_lets_the_next_run_start(store: Store) -> None:
    worker = Customer(store)
    rate: dict[str, Any] = {"limit": None, "rate": 2, "period": timedelta(seconds=60)}
    worker.hold("a", **rate)
    move_clock(store, "20 seconds")
    later = Customer(store)
    later.hold("b", **rate)
    assert later.ask(later.need("c", **rate)) is Refusal.SLOT

    with keeper(store) as statements:
        room = statements.slots_with_room("", 10)
        assert room.keys == []
        assert room.opens_in == pytest.approx(40, abs=5)
    move_clock(store, "61 seconds")
    with keeper(store) as statements:
        assert statements.slots_with_room("", 10) == (["key"], None, None)


def test_a_run_that_goes_on_does_not_count_as_another_start(store: Store) -> None:
    worker = Customer(store)
    claim = worker.hold("a", limit=None, rate=1, period=timedelta(seconds=60))
    store.runs.release(claim.key, claim.fence, Release("released", timedelta(0)))

    assert not isinstance(worker.ask("a"), Refusal)


def test_the_keeper_finds_the_keys_that_have_room_batch_by_batch(store: Store) -> None:
    worker = Customer(store)
    for number in range(5):
        for name in ("holder", "waiter"):
            worker.enqueue(f"{name}-{number}", slot=Slot(f"key-{number}", 1))
        holder = worker.ask(f"holder-{number}")
        assert worker.ask(f"waiter-{number}") is Refusal.SLOT
        if number % 2:
            worker.succeed(holder)

    with keeper(store) as statements:
        assert statements.slots_with_room("", 10) == (["key-1", "key-3"], None, None)
        assert statements.slots_with_room("", 2) == (["key-1"], "key-1", None)
        assert statements.slots_with_room("key-1", 2) == (["key-3"], "key-3", None)
        assert [one.id for one in statements.grant("key-3")] == ["waiter-3"]


class Turmoil:
    """Threads that claim runs of two keys, end them, or vanish with them."""

    def __init__(self, store: Store, runs: int) -> None:
        self.store, self.runs = store, runs
        self.lock = threading.Lock()
        self.over: set[str] = set()
        self.worst: Counter[str] = Counter()
        first, chance = Customer(store), random.Random(7)
        self.messages = [
            first.enqueue(f"run-{n}", slot=Slot(f"key-{n % 2}", 1 + n % 2, rank=chance.randrange(3)))
            for n in range(runs)
        ]
        chance.shuffle(self.messages)

    def work(self, seed: int) -> None:
        chance, mine = random.Random(seed), Customer(self.store, f"worker@{seed}")
        while len(self.over) < self.runs:
            with self.lock:
                run_id = self.messages.pop() if self.messages else None
            if run_id is None:
                self.keep(mine)
                continue
            claim = mine.ask(run_id)
            self.messages += mine.woken
            mine.woken.clear()
            if isinstance(claim, Refusal):
                continue
            with self.lock:
                self.worst[claim.slot] = max(self.worst[claim.slot], self.executing(claim.slot))
            if chance.random() < 0.2:
                mine.vanish()
                mine = Customer(self.store, f"worker@{seed}")
                continue
            mine.succeed(claim)
            self.over.add(run_id)
            self.messages += [one.id for one in self.store.slots.grant(claim.slot)]

    def executing(self, key: str) -> int:
        sql = (
            "select count(*) from durable.run r join durable.worker w on w.id = r.worker"
            " where r.slot = %s and r.state = 'running'"
        )
        row = self.store.connections.once(lambda connection: connection.execute(sql, [key]).fetchone())
        return int(row["count"]) if row else 0

    def keep(self, mine: Customer) -> None:
        """Do what the keeper does: orphans come back, and whoever has room is woken."""
        with self.lock:
            self.messages += self.store.connections.once(
                lambda connection: self.kept(self.store.keeper(connection), mine)
            )
        threading.Event().wait(0.02)  # leave the lock to those who have something to do

    def kept(self, statements: KeeperStore, mine: Customer) -> list[str]:
        term = statements.lead(mine.token, timedelta(minutes=1)).term or 0
        recovered = statements.recover_orphans(term, limit=50, max_recoveries=99, result=b"", result_type="")
        woken = [statements.grant(key) for key in statements.slots_with_room("", 10).keys]
        return [one.id for one in recovered] + [one.id for some in woken for one in some]


def test_random_claims_ends_and_deaths_exceed_no_limit_and_everybody_gets_a_turn(store: Store) -> None:
    turmoil = Turmoil(store, runs=24)

    together(*(lambda seed=seed: turmoil.work(seed) for seed in range(4)))  # type: ignore[misc]

    assert turmoil.over == {f"run-{number}" for number in range(24)}
    assert turmoil.worst["key-0"] == 1
    assert turmoil.worst["key-1"] <= 2


# -- what a task and a call say ---------------------------------------------------------------------------


def export(customer: int) -> int:
    return customer


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


def slots(store: Store) -> list[tuple[Any, ...]]:
    rows = execute(
        store, "select slot, slot_limit, slot_rate, slot_period, slot_rank from durable.run order by key"
    )
    return [tuple(row.values()) for row in rows]


def test_a_task_says_which_runs_share_what(world: World) -> None:
    world.task(export, name="export", concurrency_limit=2).delay(7)
    world.task(export, concurrency_limit=1, concurrency_key="customer-{customer}").delay(7)
    world.task(export, start_rate="100/m", concurrency_key=lambda customer: f"c{customer}").delay(8)
    world.task(export, concurrency_limit=1).apply_async(
        (7,), concurrency_key="mine", concurrency_limit=5, start_rate=3, priority=4
    )
    world.task(export).delay(7)

    assert slots(world.store) == [
        ("export", 2, None, None, 0),
        ("customer-7", 1, None, None, 0),
        ("c8", None, 100, timedelta(minutes=1), 0),
        ("mine", 5, 3, timedelta(seconds=1), 4),
        (None, None, None, None, 0),
    ]


def test_a_call_says_it_as_a_task_does(world: World) -> None:
    task = world.task(export, name="export", concurrency_limit=1, concurrency_key="the task's")
    for key in ("c-{customer}", lambda customer: f"f-{customer}", "plain"):
        task.apply_async((7,), concurrency_key=key)
        task.apply_async(kwargs={"customer": 8}, concurrency_key=key)

    assert [slot for slot, *_ in slots(world.store)] == ["c-7", "c-8", "f-7", "f-8", "plain", "plain"]


def test_a_run_stored_in_a_transaction_of_the_callers_needs_its_slot_as_well(world: World) -> None:
    task = world.task(export, name="export", concurrency_limit=2, start_rate="10/m")

    with world.store.connections.dedicated() as connection, connection.transaction():
        task.apply_async((7,), transaction=connection)

    assert slots(world.store) == [("export", 2, 10, timedelta(minutes=1), 0)]


@pytest.mark.parametrize("limited", [None, 2])
def test_a_run_that_another_task_replaces_shares_what_that_one_does(
    world: World, limited: int | None
) -> None:
    """One that goes on as the same task keeps what its caller has said."""
    other = world.task(export, concurrency_limit=limited, concurrency_key=limited and "theirs")

    def replaced(self: Any, times: int) -> None:
        if times:
            durable.continue_as(0)
        raise self.replace(other.s(7))

    task = world.task(replaced, bind=True, concurrency_limit=1, concurrency_key="task")
    run_id = task.apply_async((1,), concurrency_key="mine", concurrency_limit=3).id
    world.deliver(run_id)
    assert slots(world.store) == [("mine", 3, None, None, 0)]
    world.deliver(run_id)

    assert slots(world.store) == [(limited and "theirs", limited, None, None, 0)]
    (row,) = execute(world.store, "select state, task from durable.run")
    assert (row["state"], row["task"]) == ("pending", other.name)
    world.deliver(run_id)
    assert states(world.store)[run_id] == ("succeeded", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency_limit": 0}, "not a whole number from 1 on"),
        ({"concurrency_limit": True}, "not a whole number from 1 on"),
        ({"start_rate": "often"}, "not like '10/s'"),
        ({"start_rate": "0/s"}, "not like '10/s'"),
        ({"concurrency_key": "a"}, "needs a concurrency_limit or a start_rate"),
        ({"concurrency_key": "", "concurrency_limit": 1}, "not a printable text"),
        (
            {"concurrency_key": "{who}", "concurrency_limit": 1},
            "cannot be made of the arguments of this call",
        ),
        ({"concurrency_key": lambda customer: customer, "concurrency_limit": 1}, "not a printable text"),
    ],
)
def test_what_cannot_be_meant_is_refused(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(durable.ConfigurationError, match=message):
        world.task(export).apply_async((1,), **options)


def test_the_end_of_a_run_wakes_the_next_one(world: World) -> None:
    seen: list[int] = []

    def body(number: int) -> None:
        seen.append(number)
        if number == 1:
            world.deliver(second)

    task = world.task(body, name="body", concurrency_limit=1)
    first, second = task.delay(1).id, task.delay(2).id

    world.deliver(first)

    assert seen == [1]
    assert world.state(second) == ("pending", "slot")
    world.deliver(second)
    assert seen == [1, 2]
    assert world.state(second)[0] == "succeeded"


def test_a_waiting_run_hands_its_slot_on(world: World) -> None:
    def fails(self: Any, number: int) -> None:
        if number == 1:
            world.deliver(second)
        raise self.retry(countdown=60)

    task = world.task(fails, bind=True, name="fails", concurrency_limit=1)
    first, second = task.delay(1).id, task.delay(2).id
    world.deliver(first)

    assert world.state(first) == ("waiting", "retry")
    assert world.state(second) == ("pending", "slot")


def test_a_chain_a_fork_and_a_resume_need_their_slots_too(world: World) -> None:
    limited = world.task(export, name="limited", concurrency_limit=1)
    free = world.task(passed_on)

    head = (free.s(3) | limited.s()).apply_async().parent.id
    world.deliver(head)
    source = execute(world.store, "select id from durable.run where task = 'limited'")[0]["id"]
    world.deliver(source)
    Runs(world.app).fork(source)

    assert [slot[0] for slot in slots(world.store)] == [None, "limited", "limited"]


def passed_on(number: int) -> int:
    return number


def test_a_message_without_the_header_gets_no_further(world: World) -> None:
    """As of a task that had no limit yet when it was sent by name."""
    task = world.task(export, name="sent", concurrency_limit=1)
    run_id = task.delay(1).id
    execute(
        world.store,
        "update durable.run set message = replace(convert_from(message, 'utf8'), '\"durable-slot\": true', "
        "'\"other\": 1')::bytea",
    )
    world.deliver(run_id)

    assert world.state(run_id)[0] == "succeeded"


def test_show_and_stats_say_who_waits_for_what(world: World) -> None:
    runs = Runs(world.app)
    task = world.task(export, name="export", concurrency_limit=1, start_rate="10/m")
    holder, waiter = task.delay(1).id, task.delay(2).id
    worker = Customer(world.store)
    worker.ask(holder)
    worker.ask(waiter)

    seen = runs.get(waiter)
    assert (seen.slot, seen.slot_limit, seen.slot_rate, seen.slot_period) == (
        "export",
        1,
        10,
        timedelta(minutes=1),
    )
    (slot,) = runs.stats().slots
    assert (slot.slot, slot.running, slot.waiting) == ("export", 1, 1)
