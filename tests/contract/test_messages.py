"""The broker's statements: who gets a message, whose acknowledgement counts, and what becomes of the rest."""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from explaining import given
from harness.postgres import fresh_database
from harness.waiting import eventually
from psycopg.rows import dict_row

from celery_durable.config import Settings
from celery_durable.store import Store, queries
from celery_durable.store.consuming import Claimed, ConsumerSession, Delivery, Order, Place, Return
from celery_durable.store.messages import Binding, MessageStore, NewMessage

if TYPE_CHECKING:
    from collections.abc import Iterator


SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


class Consumer:
    """A registered consumer of one queue."""

    def __init__(self, store: Store, *, listens: bool = True, max_returns: int = 2) -> None:
        self.session = ConsumerSession(
            store.connections, schema="durable", listens=listens, max_returns=max_returns
        )
        self.id = self.session.register(["work"])

    def claim(self, limit: int = 100, *, floor: int = 0) -> list[Delivery]:
        places = [Place("work", priority, floor) for priority in range(9, -1, -1)]
        ((*found,),) = self.session.turn(self.id, orders=[Order(places, limit)])
        return found

    def settle(self, *claims: Claimed) -> None:
        self.session.turn(self.id, done=claims)

    def give_back(self, *claims: Claimed, counted: bool = True) -> None:
        self.session.turn(self.id, back=[Return(claim, counted) for claim in claims])


@pytest.fixture
def messages(store: Store) -> MessageStore:
    made = MessageStore(store.connections, schema="durable")
    made.declare("work", auto_delete=False, expires=None, ttl=None)
    return made


@pytest.fixture
def consumers(store: Store, messages: MessageStore) -> Iterator[Any]:
    made: list[Consumer] = []

    def make(**options: Any) -> Consumer:
        made.append(Consumer(store, **options))
        return made[-1]

    yield make
    for consumer in made:
        consumer.session.close()


def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    return store.connections.once(lambda connection: connection.execute(sql.encode()).fetchall())


@contextmanager
def later(store: Store, seconds: float) -> Iterator[None]:
    """Move the database's clock for sessions that begin now, and for those of the store."""
    name = rows(store, "select current_database() as name")[0]["name"]
    for value in (f"set durable.clock_offset = '{seconds} seconds'", "reset durable.clock_offset"):
        rows_of = f"alter database {name} {value}"
        store.connections.once(lambda connection, sql=rows_of: connection.execute(sql.encode()) and None)
        store.close()
        if value.startswith("set"):
            yield


@contextmanager
def clock_with_a_gate(store: Store) -> Iterator[None]:
    """Let whoever asks the database for the time wait while somebody holds the advisory lock 7."""
    (row,) = rows(store, "select pg_get_functiondef('durable.clock'::regproc) as kept")
    waiting = "perform pg_advisory_lock_shared(7); perform pg_advisory_unlock_shared(7);"
    gated = (
        "create or replace function durable.clock() returns timestamptz language plpgsql"
        f" as $$ begin {waiting} return now(); end $$"
    )
    with store.connections.dedicated() as connection:
        connection.execute(gated.encode())
        try:
            yield
        finally:
            connection.execute(row["kept"].encode())


def put(messages: MessageStore, *payloads: str, **options: Any) -> None:
    for payload in payloads:
        assert messages.send(NewMessage("work", payload.encode(), **options))


def payloads(found: list[Delivery]) -> list[str]:
    return [delivery.payload.decode() for delivery in found]


# -- who gets a message -----------------------------------------------------------------------------------


def test_the_highest_priority_comes_first_and_the_oldest_among_equals(
    messages: MessageStore, consumers: Any
) -> None:
    put(messages, "a")
    put(messages, "b", "c", priority=5)
    put(messages, "d", priority=9)

    assert payloads(consumers().claim(3)) == ["d", "b", "c"]


def test_consumers_that_claim_at_once_share_the_messages(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    assert messages.send_many([NewMessage("work", b"%d" % n) for n in range(600)]) == {"work"}
    makers = [consumers() for _ in range(4)]
    found: list[list[str]] = [[] for _ in makers]
    together = threading.Barrier(len(makers))

    def work(number: int) -> None:
        together.wait()
        while claimed := makers[number].claim(7):
            found[number] += payloads(claimed)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(makers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(int(one) for part in found for one in part) == list(range(600))


def test_a_message_that_is_being_claimed_is_stepped_over_not_waited_for(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "first", "second")
    with store.connections.dedicated() as busy, busy.transaction():
        busy.execute(b"select from durable.message where payload = 'first' for update")

        assert payloads(consumers().claim()) == ["second"]


def test_a_claim_that_comes_second_sees_what_is_behind(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    """It has looked at the first message before, and locks it after, somebody else has claimed it."""
    put(messages, "first", "second", expires=HOUR)
    slow, found = consumers(), []
    (first, _) = rows(store, "select id from durable.message order by id")
    with store.connections.dedicated() as gate, clock_with_a_gate(store):
        gate.execute(b"select pg_advisory_lock(7)")
        thread = threading.Thread(target=lambda: found.extend(slow.claim(1)))
        thread.start()
        waits = """select pid from pg_locks where locktype = 'advisory' and objid = 7 and not granted
            and database = (select oid from pg_database where datname = current_database())"""
        eventually(lambda: rows(store, waits))
        gate.execute(b"insert into durable.claim values (%s, 0, 1)", (first["id"],))
        gate.execute(b"select pg_advisory_unlock(7)")
        thread.join()

    assert payloads(found) == ["second"]


def test_consumers_of_the_release_before_and_of_this_one_take_nothing_from_each_other(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "old", "new")
    (old, new) = rows(store, "select id from durable.message order by id")
    claim = "update durable.message set holder = 0, claims = claims + 1 where id = {} returning id"
    consumer = consumers()

    assert rows(store, claim.format(old["id"])) == [old]
    (delivery,) = consumer.claim()
    assert delivery.claim.id == new["id"]
    assert rows(store, claim.format(new["id"])) == []
    assert [(queue.ready, queue.held) for queue in messages.queues()] == [(0, 2)]

    assert consumer.session.recover() == {"work": 1}  # there is no consumer 0
    (again,) = consumer.claim()
    assert again.claim == (consumer.id, old["id"], 2)


def test_a_message_without_a_queue_is_told_from_one_that_was_stored(messages: MessageStore) -> None:
    assert not messages.send(NewMessage("nowhere", b"x"))
    assert messages.send_many([NewMessage("nowhere", b"x"), NewMessage("work", b"y")]) == {"work"}


def test_an_exchange_leads_to_each_queue_that_matches_once(messages: MessageStore, consumers: Any) -> None:
    for queue in ("all", "some"):
        messages.declare(queue, auto_delete=False, expires=None, ttl=None)
    messages.bind(Binding("topics", "topic", "video.*", "work", r"^video\.[^\.]+$"))
    messages.bind(Binding("topics", "topic", "#", "work", r"^.*?$"))
    messages.bind(Binding("topics", "topic", "audio.#", "some", r"^audio\..*?$"))
    messages.bind(Binding("news", "fanout", "", "all"))

    assert messages.route("topics", "video.cut", NewMessage("", b"x"))
    assert not messages.route("nobody", "video.cut", NewMessage("", b"x"))
    states = {name: messages.state(name) for name in ("work", "some", "all")}
    assert {name: state and state.messages for name, state in states.items()} == {
        "work": 1,
        "some": 0,
        "all": 0,
    }
    assert messages.route("news", "anything", NewMessage("", b"x"))
    assert messages.state("all").messages == 1  # type: ignore[union-attr]
    messages.unbind("topics", "work", "#")
    messages.unbind("topics", "work", "video.*")
    assert not messages.route("topics", "video.cut", NewMessage("", b"x"))


# -- whose acknowledgement counts -------------------------------------------------------------------------


def test_an_acknowledgement_of_an_earlier_claim_leaves_the_later_one_alone(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    """The same consumer, the same message, the same delivery otherwise: only the number tells."""
    put(messages, "x")
    consumer = consumers()
    (first,) = consumer.claim()
    consumer.give_back(first.claim)
    (second,) = consumer.claim()

    consumer.settle(first.claim)
    assert len(rows(store, "select id from durable.message")) == 1

    consumer.settle(second.claim)
    assert rows(store, "select id from durable.message") == []


def test_a_consumer_that_was_declared_dead_claims_and_acknowledges_nothing(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "x", "y")
    frozen, other = consumers(), consumers()
    (held,) = frozen.claim(1)
    assert other.session.bury({frozen.id: 0}) == [frozen.id]
    assert other.session.recover() == {"work": 1}
    (taken, _) = other.claim()

    frozen.settle(held.claim)
    frozen.give_back(held.claim)

    assert not frozen.session.beat(frozen.id, ["work"], wanted=["work"])
    put(messages, "z")
    assert frozen.claim() == []
    assert taken.claim.number == 2
    assert len(rows(store, f"select message from durable.claim where consumer = {other.id}")) == 2


def test_a_consumer_that_shows_itself_at_the_last_moment_is_not_buried(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "x")
    late, other = consumers(), consumers()
    late.claim()
    _, seen = other.session.consumers()
    assert late.session.beat(late.id, ["work"], wanted=())

    assert other.session.bury({late.id: seen[late.id][0]}) == []
    assert other.session.recover() == {}


def test_a_claim_whose_answer_was_lost_goes_back(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "heard", "unheard")
    consumer = consumers()
    heard, _ = consumer.claim()

    consumer.session.reconcile(consumer.id, [heard.claim.id])

    assert payloads(consumers().claim()) == ["unheard"]


def test_a_consumer_that_leaves_hands_everything_back_at_once_and_uncounted(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    put(messages, "x")
    leaving = consumers()
    leaving.claim()

    leaving.session.leave(leaving.id)

    assert payloads(consumers().claim()) == ["x"]
    assert rows(store, "select returns from durable.message") == [{"returns": 0}]


# -- what comes back too often ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rejected", "lost"])
def test_a_message_that_comes_back_too_often_goes_to_the_dead_letter_queue(
    store: Store, messages: MessageStore, consumers: Any, how: str
) -> None:
    put(messages, "poison", expires=HOUR)
    for _ in range(3):
        consumer, other = consumers(max_returns=2), consumers(max_returns=2)
        (delivery,) = consumer.claim()
        if how == "rejected":
            consumer.give_back(delivery.claim)
        else:
            other.session.bury({consumer.id: 0})
            other.session.recover()

    assert consumers().claim() == []
    assert rows(store, "select queue, returns, expires_at from durable.message") == [
        {"queue": "work.dead", "returns": 0, "expires_at": None}
    ]
    assert messages.state("work.dead").messages == 1  # type: ignore[union-attr]


def test_what_was_only_prefetched_does_not_become_poison(messages: MessageStore, consumers: Any) -> None:
    put(messages, "x")
    for _ in range(5):
        consumer = consumers(max_returns=1)
        (delivery,) = consumer.claim()
        consumer.give_back(delivery.claim, counted=False)

    assert payloads(consumers().claim()) == ["x"]


# -- what goes by itself ----------------------------------------------------------------------------------


def test_a_message_that_expired_is_not_delivered_and_is_removed(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    messages.declare("work", auto_delete=False, expires=None, ttl=10 * SECOND)
    put(messages, "by its queue", "by itself", expires=HOUR)
    messages.declare("work", auto_delete=False, expires=None, ttl=None)
    put(messages, "later", expires=HOUR)
    put(messages, "never")
    with later(store, 20):
        assert payloads(consumers().claim()) == ["later", "never"]
    rows(store, "delete from durable.claim returning message")
    with later(store, 4000):
        expired, _ = consumers().session.tidy(SECOND)
    assert expired == 3
    assert payloads(consumers().claim()) == ["never"]


def test_a_queue_that_expires_goes_with_its_messages_and_bindings_unless_somebody_consumes_it(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    messages.declare("reply", auto_delete=True, expires=10 * SECOND, ttl=None)
    messages.declare("event", auto_delete=True, expires=None, ttl=None)
    messages.bind(Binding("replies", "direct", "reply", "reply"))
    assert messages.route("replies", "reply", NewMessage("", b"x"))
    consumer = consumers()
    consumer.session.beat(consumer.id, ["reply"], wanted=())
    with later(store, 30):
        late = consumers()
        assert late.session.tidy(60 * SECOND) == (0, [])
        late.session.leave(consumer.id)
    with later(store, 35):
        assert consumers().session.tidy(60 * SECOND) == (0, [])
    with later(store, 90):
        _, pruned = consumers().session.tidy(60 * SECOND)

    assert sorted(pruned) == ["event", "reply"]
    assert messages.bindings("replies") == []
    assert rows(store, "select id from durable.message") == []
    assert [queue.name for queue in messages.queues()] == ["work"]


def test_a_queue_that_goes_with_its_last_consumer_goes_soon_after_it_whatever_it_was_declared_with(
    messages: MessageStore, store: Store, consumers: Any
) -> None:
    """A client of `rpc://` declares its replies' queue for a day, and consumes it when it first waits."""
    for name in ("left", "never consumed", "declared again"):
        messages.declare(name, auto_delete=True, expires=24 * HOUR, ttl=None)
    consumer = consumers()
    consumer.session.beat(consumer.id, ["left", "declared again"], wanted=())
    consumer.session.leave(consumer.id)
    messages.declare("declared again", auto_delete=True, expires=24 * HOUR, ttl=None)

    with later(store, 50):
        assert consumers().session.tidy() == (0, [])
    with later(store, 70):
        assert consumers().session.tidy() == (0, ["left"])


# -- waking -----------------------------------------------------------------------------------------------


def heard(consumer: Consumer, timeout: float = 5.0) -> list[str]:
    from celery_durable.transport.bell import Bell

    bell = Bell()
    try:
        return consumer.session.wait(bell.fileno(), timeout)
    finally:
        consumer.session._selector.unregister(bell.fileno())
        bell.close()


def test_only_a_consumer_that_sleeps_is_told_and_only_one_of_several(
    messages: MessageStore, consumers: Any
) -> None:
    sleeping, other, busy = consumers(), consumers(), consumers()
    for consumer in (sleeping, other):
        consumer.session.beat(consumer.id, ["work"], wanted=["work"])

    put(messages, "x")

    told = [heard(consumer, 0.2) for consumer in (sleeping, other, busy)]
    assert sorted(told) == [[], [], ["queue:work"]]
    assert told[2] == []


def test_as_many_sleepers_are_told_as_there_are_messages_and_none_that_has_no_room(
    messages: MessageStore, consumers: Any
) -> None:
    asleep = [consumers() for _ in range(3)]
    full, older = consumers(), consumers()
    for consumer in asleep:
        consumer.session.beat(consumer.id, ["work"], wanted=["work"])
    full.session.beat(full.id, ["work", "control"], wanted=["control"])
    older.session.beat(older.id, [], wanted=())

    messages.send_many([NewMessage("work", b"x"), NewMessage("work", b"y")])

    told = [heard(consumer, 0.2) for consumer in (*asleep, full, older)]
    assert sorted(told[:3]) == [[], ["queue:work"], ["queue:work"]]
    assert told[3:] == [[], []]


def test_what_comes_back_is_told_to_everybody(messages: MessageStore, consumers: Any) -> None:
    put(messages, "x")
    first, other = consumers(), consumers()
    (delivery,) = first.claim()
    first.give_back(delivery.claim)

    assert heard(other) == [f"back:{delivery.claim.id}"]


def test_dead_letters_that_are_put_back_are_told_to_everybody_who_has_been_past_them(
    messages: MessageStore, consumers: Any
) -> None:
    put(messages, "x", "y")
    first, other = consumers(max_returns=0), consumers()
    x, y = first.claim()
    first.give_back(y.claim, x.claim)

    assert messages.redrive("work") == 2

    assert heard(first)[-1] == heard(other)[-1] == f"back:{x.claim.id}"
    assert messages.redrive("work") == 0


# -- cost -------------------------------------------------------------------------------------------------


def test_a_message_is_never_rewritten_and_a_lease_is_renewed_in_place(
    postgres_url: str,
) -> None:
    """Claim and acknowledgement leave the message's row, and renewing the lease leaves every index, alone."""
    with fresh_database(postgres_url) as url, closing(Store(url, Settings())) as store:
        store.migrate()
        _work(store)
        expected = [("claim", 500, 0, 0, 500), ("consumer", 1, 50, 50, 0), ("message", 500, 0, 0, 500)]
        eventually(lambda: counters(store) == expected, what=lambda: str(counters(store)))


def _work(store: Store) -> None:
    messages = MessageStore(store.connections, schema="durable")
    messages.declare("work", auto_delete=False, expires=None, ttl=None)
    consumer = Consumer(store)
    for _ in range(50):
        put(messages, *map(str, range(10)))
        consumer.settle(*(delivery.claim for delivery in consumer.claim()))
        consumer.session.beat(consumer.id, ["work"], wanted=())
    consumer.session.close()
    store.close()  # sessions that end report what they did


def counters(store: Store) -> list[tuple[Any, ...]]:
    """Return inserts, updates, HOT updates and deletes of the tables of the hot path."""
    sql = (
        "select relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del from pg_stat_user_tables"
        " where relname in ('claim', 'consumer', 'message') order by relname"
    )
    return [tuple(row.values()) for row in rows(store, sql)]


def pages_read(store: Store, consumer: Consumer, *, floor: int = 0) -> int:
    """Return how many pages a claim of ten messages touches; it is rolled back."""
    values = {
        "queues": ["work"] * 10,
        "priorities": list(range(9, -1, -1)),
        "floors": [floor] * 10,
        "limit": 10,
        "consumer": consumer.id,
    }
    sql = "explain (analyze, buffers, format json) " + queries.load("consumers")["claim"]
    with store.connections.dedicated() as connection:
        connection.row_factory = dict_row
        connection.execute(queries.load("consumers")["plan_by_index"].encode())
        connection.execute(b"set plan_cache_mode = force_generic_plan")
        with connection.transaction(force_rollback=True):
            row = connection.execute(sql.encode(), values).fetchone()
    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def fill(store: Store, number: int, size: int = 2) -> None:
    rows(
        store,
        "insert into durable.message (queue, priority, payload)"
        f" select 'work', n % 3, repeat('x', {size})::bytea"
        f" from generate_series(1, {number}) n returning 1",
    )
    with store.connections.dedicated() as connection:
        connection.execute(b"vacuum analyze durable.message")


@pytest.mark.parametrize("name", ["consumers", "ready", "claim", "settle", "recover"])
def test_no_statement_of_a_consumer_is_compiled_first(store: Store, consumers: Any, name: str) -> None:
    """Where a table is small, the plan is one that was refused, at a price that would start the compiler."""
    connection = consumers().session._connection
    sql = queries.load("consumers")[name]
    values = given("consumers", name, sql)

    plan = connection.execute(f"explain (analyze, format json) {sql}".encode(), values).fetchone()

    assert "JIT" not in plan["QUERY PLAN"][0]


def test_a_claim_reads_as_much_of_a_long_queue_as_of_a_short_one(store: Store, consumers: Any) -> None:
    consumer = consumers()
    fill(store, 300)
    short = pages_read(store, consumer)
    fill(store, 200_000)

    assert pages_read(store, consumer) <= 2 * short


def test_a_claim_steps_over_the_dead_that_a_held_transaction_keeps(
    store: Store, messages: MessageStore, consumers: Any
) -> None:
    consumer = consumers()
    fill(store, 30)
    fresh = pages_read(store, consumer)
    with store.connections.dedicated() as holder, holder.transaction():
        holder.execute(b"set transaction isolation level repeatable read")
        holder.execute(b"select count(*) from durable.message")
        fill(store, 10_000, size=800)
        last = 0
        while found := consumer.claim(1000, floor=last):
            consumer.settle(*(delivery.claim for delivery in found))
        (row,) = rows(store, "select max(id) as last from durable.message")
        assert row["last"] is None
        (head,) = rows(store, "select last_value from durable.message_id_seq")
        fill(store, 30)

        without = pages_read(store, consumer)
        assert pages_read(store, consumer, floor=head["last_value"]) <= 2 * fresh < without / 2
