"""`durable+postgresql://` as kombu's users see it: deliveries, limits, returns, and outages."""

from __future__ import annotations

import pickle
import time
from typing import TYPE_CHECKING, Any

import pytest
from amqp.exceptions import NotFound
from harness.pooler import pooled
from harness.proxy import proxied
from harness.waiting import eventually, take
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.common import itermessages
from kombu.exceptions import ChannelError, OperationalError
from kombu.mixins import ConsumerMixin

from celery_durable.exceptions import ConfigurationError, SchemaMissingError, StoreError
from celery_durable.store.messages import MessageStore
from celery_durable.transport import heads, register
from celery_durable.transport.broker import database_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

register()

WORK = Queue("work", Exchange("work"), routing_key="work")


@pytest.fixture
def connect(store: Store) -> Iterator[Callable[..., Connection]]:
    """Return a maker of connections to the broker, closed at the end."""
    made: list[Connection] = []

    def make(url: str = store.url, **options: Any) -> Connection:
        made.append(Connection(f"durable+{url}", transport_options=options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
def messages(store: Store) -> MessageStore:
    return MessageStore(store.connections, schema="durable")


def alone(name: str) -> Queue:
    """Return a queue with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def publish(connection: Connection, *bodies: Any, queue: Queue = WORK, **options: Any) -> None:
    producer = Producer(connection.default_channel)
    for body in bodies:
        producer.publish(
            body, exchange=queue.exchange, routing_key=queue.routing_key, declare=[queue], **options
        )


class Reader:
    """A consumer and what it was given."""

    def __init__(self, connection: Connection, *queues: Queue, prefetch: int = 0, **options: Any) -> None:
        self.connection = connection
        self.messages: list[Any] = []
        self.channel = connection.channel()
        self.consumer = Consumer(
            self.channel,
            list(queues or (WORK,)),
            on_message=self.messages.append,
            prefetch_count=prefetch,
            **options,
        )
        self.consumer.consume()

    @property
    def bodies(self) -> list[Any]:
        return [message.decode() for message in self.messages]

    def drain(self, timeout: float = 0.3) -> list[Any]:
        """Take what comes until nothing comes for a while; return it."""
        before = len(self.messages)
        while True:
            try:
                self.connection.drain_events(timeout=timeout)
            except TimeoutError:
                return self.messages[before:]

    def wait_for(self, number: int) -> list[Any]:
        """Take what comes until there are so many in all."""

        def enough() -> bool:
            self.drain(0.05)
            return len(self.messages) >= number

        eventually(enough, what=lambda: f"{number} messages; there are {self.bodies}")
        return self.bodies


def held(store: Store) -> int:
    sql = b"select count(*) as held from durable.claim"
    rows = store.connections.once(lambda connection: connection.execute(sql).fetchall())
    return int(rows[0]["held"])


def entries_read(store: Store) -> dict[str, int]:
    """Return how many entries of each index of the broker were read by sessions that have ended."""
    sql = (
        b"select indexrelname as name, idx_tup_read as entries from pg_stat_user_indexes"
        b" where relname in ('message', 'claim') and idx_tup_read > 0"
    )
    rows = store.connections.once(lambda connection: connection.execute(sql).fetchall())
    return {row["name"]: row["entries"] for row in rows}


def waiting(messages: MessageStore, queue: str = "work") -> int:
    state = messages.state(queue)
    return -1 if state is None else state.messages


# -- deliveries -------------------------------------------------------------------------------------------


def test_a_second_delivery_says_so_where_celery_looks_and_has_another_tag(connect: Any) -> None:
    reader = Reader(connect(), prefetch=1)
    publish(connect(), "x")
    reader.wait_for(1)
    (first,) = reader.messages
    assert not first.delivery_info.get("redelivered")

    first.reject(requeue=True)
    reader.wait_for(2)

    second = reader.messages[1]
    assert second.properties["delivery_info"]["redelivered"] is True
    assert second.delivery_tag != first.delivery_tag
    second.ack()


def test_no_more_than_the_prefetch_limit_is_claimed_until_something_is_acknowledged(
    connect: Any, store: Store
) -> None:
    publish(connect(), *range(6))
    reader = Reader(connect(), prefetch=2)
    assert reader.wait_for(2) == [0, 1]
    assert reader.drain() == []
    assert held(store) == 2

    reader.messages[0].ack()
    assert reader.wait_for(3) == [0, 1, 2]

    reader.consumer.qos(prefetch_count=4)
    assert reader.wait_for(5) == [0, 1, 2, 3, 4]
    assert held(store) == 4


@pytest.mark.parametrize("listen", [True, False])
def test_a_channel_without_room_does_not_keep_the_others_waiting(
    connect: Any,
    listen: bool,  # noqa: FBT001
) -> None:
    """A worker that has never been idle, and whose tasks take long, answers remote control."""
    publish(connect(), *range(3))
    connection = connect(listen=listen)
    reader = Reader(connection, prefetch=1)
    reader.wait_for(1)
    control = Queue("control", Exchange("control"), routing_key="control")
    listener = Reader(connection, control, no_ack=True)
    for number in range(3):
        reader.drain(0.3)
        publish(connect(), number, queue=control)
        assert listener.wait_for(number + 1) == list(range(number + 1))
    assert len(reader.messages) == 1


def test_every_consumer_of_a_fanout_gets_a_copy_also_in_another_connection(connect: Any) -> None:
    news = Exchange("news", type="fanout")
    readers = [Reader(connect(), Queue(f"news-{n}", news, auto_delete=True), no_ack=True) for n in range(2)]

    Producer(connect().default_channel).publish("hello", exchange=news, routing_key="")

    assert [reader.wait_for(1) for reader in readers] == [["hello"], ["hello"]]


def test_what_does_not_acknowledge_is_done_with_at_its_delivery(connect: Any, store: Store) -> None:
    publish(connect(), "x")
    reader = Reader(connect(), no_ack=True)
    assert reader.wait_for(1) == ["x"]

    eventually(lambda: store.connections.once(_count) == 0)


def _count(connection: Any) -> int:
    return int(connection.execute(b"select count(*) as number from durable.message").fetchone()["number"])


@pytest.mark.parametrize(
    ("pattern", "reached", "missed"),
    [
        ("stock.#", ["stock", "stock.eu", "stock.eu.tech"], ["stocks", "a.stock", ""]),
        ("#.error", ["error", "db.error", "eu.db.error"], ["error.db", "noerror"]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "az", "a.b"]),
        ("a.*.z", ["a.b.z"], ["a.z", "a.b.c.z"]),
        ("*.#", ["a", "a.b"], []),
        ("#", ["", "a", "a.b"], []),
        ("#.#", ["", "a", "a.b"], []),
        ("a+b.(c)", ["a+b.(c)"], ["aab.c", "a+bx(c)"]),
    ],
)
def test_a_topic_s_words_mean_what_they_mean_in_rabbitmq(
    connect: Any, pattern: str, reached: list[str], missed: list[str]
) -> None:
    connection = connect()
    exchange = Exchange("topics", "topic")
    reader = Reader(connection, Queue("bound", exchange, routing_key=pattern))
    producer = Producer(connection.default_channel)
    for key in (*missed, *reached):
        producer.publish({"key": key}, exchange=exchange, routing_key=key)

    assert [body["key"] for body in reader.wait_for(len(reached))] == reached
    assert reader.drain() == []


def test_an_exchange_of_a_type_that_is_not_there_is_an_error_that_names_those_that_are(connect: Any) -> None:
    queue = Queue("bound", Exchange("by headers", "headers"))
    with pytest.raises(ChannelError, match=r"no exchange type 'headers' \(there are: direct, fanout, topic"):
        queue(connect().default_channel).declare()


def test_a_deleted_exchange_leads_nowhere_and_an_unbound_queue_gets_nothing(
    connect: Any, messages: MessageStore
) -> None:
    channel = connect().default_channel
    publish(connect(), "before")
    bound = WORK(channel)
    bound.unbind_from(WORK.exchange, "work")
    Producer(channel).publish("lost", exchange="work", routing_key="work")
    bound.bind_to(WORK.exchange, "work")
    Producer(channel).publish("after", exchange="work", routing_key="work")
    WORK.exchange(channel).delete()
    Producer(channel).publish("lost", exchange="work", routing_key="work")

    assert waiting(messages) == 2


def test_a_task_is_kept_though_nobody_declared_its_queue_and_anything_else_is_dropped(
    connect: Any, messages: MessageStore
) -> None:
    producer = Producer(connect().default_channel)
    producer.publish("reply", routing_key="nobody")
    assert messages.state("nobody") is None

    producer.publish("task", routing_key="nobody", headers={"task": "x", "id": "1"})
    assert waiting(messages, "nobody") == 1


def test_a_passive_declaration_counts_messages_and_consumers(connect: Any) -> None:
    channel = connect().default_channel
    with pytest.raises((ChannelError, NotFound)):
        channel.queue_declare("work", passive=True)
    publish(connect(), 1, 2, 3)
    assert channel.queue_declare("work", passive=True)[1:] == (3, 0)
    reader = Reader(connect(), prefetch=1)
    reader.wait_for(1)

    eventually(lambda: channel.queue_declare("work", passive=True)[1:] == (2, 1))
    assert channel.queue_purge("work") == 2


def test_a_producer_s_batch_is_stored_at_its_end_and_not_at_all_after_an_error(
    connect: Any, messages: MessageStore
) -> None:
    connection = connect()
    publish(connection, "first")
    producer = Producer(connection.default_channel)
    if not hasattr(producer, "batch"):
        pytest.skip("this kombu has no batches")

    with producer.batch():
        for number in range(5):
            producer.publish(number, routing_key="work")
        assert waiting(messages) == 1
    assert waiting(messages) == 6
    with pytest.raises(ZeroDivisionError), producer.batch():
        [producer.publish(body, routing_key="work") for body in ("never", 1 / 0)]
    assert waiting(messages) == 6


def test_one_call_delivers_one_message_and_what_nobody_asked_for_stays(
    connect: Any, messages: MessageStore
) -> None:
    publish(connect(), *range(10))
    reader = Reader(connect(), prefetch=10)
    reader.connection.drain_events(timeout=20)
    assert reader.bodies == [0]
    reader.connection.close()

    connection = connect()
    found = itermessages(connection, connection.channel(), WORK, limit=3, timeout=20, no_ack=True)
    assert len([body for body, _ in found]) == 3
    eventually(lambda: waiting(messages) == 7, what=lambda: f"7 messages, not {waiting(messages)}")


def test_who_consumes_in_a_loop_stops_after_the_message_that_told_it_to(
    connect: Any, messages: MessageStore
) -> None:
    publish(connect(), *range(10))
    handled: list[Any] = []

    class Program(ConsumerMixin):
        def __init__(self, connection: Connection) -> None:
            self.connection = connection

        def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:
            return [consumer([WORK], on_message=self.handle)]

        def handle(self, message: Any) -> None:
            handled.append(message.decode())
            message.ack()
            self.should_stop = len(handled) == 3

    Program(connect()).run()

    assert handled == [0, 1, 2]
    eventually(lambda: waiting(messages) == 7)


def test_a_message_that_is_committed_just_after_its_consumer_fell_asleep_is_found_soon(
    connect: Any, store: Store
) -> None:
    """It was sent before: its publisher saw nobody who sleeps."""
    publish(connect(), "first")
    with store.connections.dedicated() as publisher:
        with publisher.transaction():
            publisher.execute(
                b"insert into durable.message (queue, priority, payload)"
                b" select queue, priority, payload from durable.message"
            )
            reader = Reader(connect())
            reader.wait_for(1)
            eventually(lambda: _asleep(store), what="the consumer to fall asleep")
        committed = time.monotonic()

    reader.wait_for(2)
    assert time.monotonic() - committed < 0.6


def _asleep(store: Store) -> list[Any]:
    sql = b"select id from durable.consumer where 'work' = any(wanted)"
    return store.connections.once(lambda connection: connection.execute(sql).fetchall())


def test_who_is_woken_for_one_queue_does_not_look_into_all_the_others(connect: Any, store: Store) -> None:
    connection, publisher = connect(), connect()
    queues = [alone(f"many-{n}") for n in range(100)]
    reader = Reader(connection, *queues)
    for number in range(30):
        publish(publisher, number, queue=queues[number])
        reader.wait_for(number + 1)
    connection.close()

    def scans() -> int:
        sql = b"select idx_scan as n from pg_stat_user_indexes where indexrelname = 'message_order'"
        return int(store.connections.once(lambda one: one.execute(sql).fetchone())["n"])

    eventually(lambda: scans() > 1000)
    assert scans() < 20_000  # a thousand for each look around, ten for each message


def test_queues_take_turns_also_where_each_has_more_than_there_is_room_for(connect: Any) -> None:
    queues = [alone(f"turn-{n}") for n in range(3)]
    for queue in queues:
        publish(connect(), *([queue.name] * 20), queue=queue)
    reader = Reader(connect(), *queues, prefetch=1)

    for number in range(1, 10):
        reader.wait_for(number)
        reader.messages[-1].ack()

    assert set(reader.bodies) == {queue.name for queue in queues}


def test_a_queue_that_never_ends_does_not_keep_another_one_waiting(connect: Any) -> None:
    other = alone("other")
    connection, publisher = connect(), connect()
    reader = Reader(connection, WORK, other, prefetch=1)
    publish(publisher, *range(200))
    for number in range(1, 201):
        reader.wait_for(number)
        if number == 10:
            publish(publisher, "other", queue=other)
        reader.messages[-1].ack()

    assert "other" in reader.bodies[:100]


# -- what a connection leaves behind, and what it outlives ------------------------------------------------


def test_a_connection_that_closes_hands_back_what_it_has_not_acknowledged_at_once(connect: Any) -> None:
    publish(connect(), 1, 2, 3)
    connection = connect()
    leaving = Reader(connection)
    leaving.wait_for(3)
    leaving.messages[1].ack()

    connection.close()

    assert sorted(Reader(connect()).wait_for(2)) == [1, 3]


def test_a_consumer_that_is_cancelled_is_given_what_has_arrived(connect: Any) -> None:
    """As with RabbitMQ, until the server confirms; not acknowledged, it goes back with its channel."""
    publish(connect(), *range(5))
    connection, bodies = connect(), []
    channel = connection.channel()
    consumer = Consumer(channel, [WORK], callbacks=[lambda body, _: bodies.append(body)])
    consumer.consume()
    connection.drain_events(timeout=20)  # one, of five that were claimed together

    consumer.cancel()

    assert bodies == list(range(5))
    channel.close()
    assert sorted(Reader(connect()).wait_for(5)) == list(range(5))


@pytest.mark.parametrize("way", ["on_message", "no_ack", "close"])
def test_what_was_not_delivered_goes_back(connect: Any, way: str) -> None:
    """To a worker's consumer, to one that does not acknowledge, and at the end of a channel."""
    publish(connect(), *range(5))
    connection, bodies = connect(), []
    channel = connection.channel()
    take_it: dict[str, Any] = {"callbacks": [lambda body, _: bodies.append(body)]}
    if way == "on_message":
        take_it = {"on_message": lambda message: bodies.append(message.decode())}
    consumer = Consumer(channel, [WORK], no_ack=way == "no_ack", **take_it)
    consumer.consume()
    connection.drain_events(timeout=20)

    (channel.close if way == "close" else consumer.cancel)()

    assert bodies == [0]
    assert {1, 2, 3, 4} <= set(Reader(connect()).wait_for(4))


def test_a_consumer_that_is_busy_for_longer_than_its_lease_keeps_its_messages(connect: Any) -> None:
    """The thread that consumes does nothing all the while, as in a solo pool."""
    publish(connect(), "long")
    busy, other = Reader(connect(lease=1.0)), Reader(connect(lease=1.0))
    reader = eventually(lambda: next((one for one in (busy, other) if one.drain(0.05)), None))
    idle = other if reader is busy else busy

    take(4.0)

    assert idle.drain() == []
    reader.messages[0].ack()


def test_postgres_may_restart_and_the_consumers_do_not_notice(
    connect: Any, store: Store, messages: MessageStore
) -> None:
    with proxied(store.url) as proxy:
        reader = Reader(connect(proxy.url), prefetch=2)
        publish(connect(), "before")
        reader.wait_for(1)

        proxy.refuse()
        reader.messages[0].ack()
        publish(connect(), "meanwhile")
        assert reader.drain() == []
        proxy.heal()

        assert reader.wait_for(2) == ["before", "meanwhile"]
        reader.messages[1].ack()
        publish(connect(), "after")
        assert reader.wait_for(3)[2] == "after"
        reader.messages[2].ack()
        eventually(lambda: store.connections.once(_count) == 0, what="every acknowledgement to arrive")
        assert not any(message.delivery_info.get("redelivered") for message in reader.messages)


@pytest.mark.parametrize("statement", ["claim", "settle"])
def test_an_answer_that_is_lost_loses_and_repeats_nothing(connect: Any, store: Store, statement: str) -> None:
    with proxied(store.url) as proxy:
        reader = Reader(connect(proxy.url), prefetch=1)
        publish(connect(), "first", "second")
        reader.wait_for(1)
        fault = proxy.lose_answer("consumers", statement)

        reader.messages[0].ack()  # travels with the claim of the second message

        assert reader.wait_for(2) == ["first", "second"]
        eventually(lambda: fault.met)
        reader.messages[1].ack()
        eventually(lambda: store.connections.once(_count) == 0)
        assert reader.bodies == ["first", "second"]


def test_more_consumers_than_connections_work_behind_pgbouncer_in_transaction_mode(
    connect: Any, store: Store
) -> None:
    with pooled(store.url, connections=2) as url:
        readers = [Reader(connect(url, prepare_statements=False), prefetch=1) for _ in range(4)]
        publish(connect(url, prepare_statements=False), *range(20))

        def handle() -> bool:
            for reader in readers:
                for message in reader.drain(0.02):
                    message.ack()
            return sum(len(reader.messages) for reader in readers) >= 20

        eventually(handle, what=lambda: str([reader.bodies for reader in readers]))
        assert sorted(body for reader in readers for body in reader.bodies) == list(range(20))
        eventually(lambda: store.connections.once(_count) == 0)
        for reader in readers:
            reader.connection.close()


def test_a_pooler_that_shares_sessions_is_met_with_the_name_of_the_option(connect: Any, store: Store) -> None:
    with pooled(store.url, connections=1) as url:
        first = connect(url)
        publish(first, "x")
        with pytest.raises(OperationalError, match="prepare_statements"):
            publish(connect(url, pool_size=2), "y")  # a process of its own, as far as the server can tell
        with pytest.raises(StoreError, match="prepare_statements"):
            Reader(first).wait_for(1)


@pytest.mark.parametrize("listen", [True, False])
def test_a_consumer_with_nothing_to_do_asks_fewer_than_five_questions_a_second(
    connect: Any,
    store: Store,
    listen: bool,  # noqa: FBT001
) -> None:
    with proxied(store.url) as proxy:
        reader = Reader(connect(proxy.url, listen=listen))
        reader.drain(2.0)
        before, began = len(proxy.statements), time.monotonic()

        reader.drain(4.0)

        asked = [statement.split("\n")[0] for statement in proxy.statements[before:]]
        assert len(asked) < 5 * (time.monotonic() - began), asked


def test_what_is_handed_back_does_not_let_a_consumer_step_over_all_that_is_dead(
    connect: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does anything else: with a transaction held open, no message's row can be cleaned away."""
    monkeypatch.setattr(heads, "_LAG", 0.0)  # nobody publishes in a transaction that takes its time
    store.connections.once(lambda connection: connection.execute(b"analyze") and None)  # every table is empty
    publisher, connection = connect(), connect()
    reader = Reader(connection, prefetch=101)
    with store.connections.dedicated() as holder, holder.transaction():
        holder.execute(b"set transaction isolation level repeatable read")
        holder.execute(b"select count(*) from durable.message")
        for number in range(1, 21):
            publish(publisher, *range(100))
            reader.wait_for(101 * number - 1)
            *done, last = reader.messages[max(0, 101 * (number - 1) - 1) :]
            for message in done:
                message.ack()
            last.requeue()
            reader.wait_for(101 * number)
        connection.close()

        eventually(lambda: entries_read(store).get("message_order", 0) > 2000)
        read = entries_read(store)
        assert max(read.values()) < 10_000, read  # there are 1,000 dead on average, and some looks a round


def test_a_message_costs_its_sleeping_consumer_one_claim_however_much_else_it_consumes(
    connect: Any, store: Store
) -> None:
    """As in a worker: tasks, remote control and events have a channel each."""
    with proxied(store.url) as proxy:
        connection = connect(proxy.url)
        reader = Reader(connection)
        for name in ("control", "event"):
            Reader(connection, Queue(name, Exchange(name), routing_key=name))
        asleep = "select id from durable.consumer where wakeable and cardinality(queues) = 3"
        eventually(lambda: store.connections.once(lambda one: one.execute(asleep.encode()).fetchall()))
        reader.drain()
        before = proxy.executions("consumers", "claim")

        publish(connect(), "x")
        reader.wait_for(1)

        assert proxy.executions("consumers", "claim") == before + 1


# -- wrong from the start ---------------------------------------------------------------------------------


def test_a_database_without_the_schema_is_an_error_that_names_the_command(
    connect: Any, database_url: str
) -> None:
    with pytest.raises(SchemaMissingError, match="durable init"):
        connect(database_url).connect()


def test_a_url_means_the_same_in_a_list_of_alternatives_and_in_a_clone() -> None:
    url = "durable+postgresql://ada:s%20cret@db:5433/media"
    switched = Connection(["redis://localhost", url])
    switched.maybe_switch_next()

    again = Connection([url.replace("db", "first"), url])
    again.maybe_switch_next()
    pickled = pickle.loads(pickle.dumps(Connection(url)))

    for connection in (
        Connection([url, "redis://localhost"]),
        Connection(url).clone(),
        Connection(url).clone().clone(),
        switched,
        switched.clone(),
        again,
        again.clone(),
        pickled,
    ):
        assert database_url(connection) == "postgresql://ada:s%20cret@db:5433/media"
        assert connection.as_uri(include_password=True) == url


@pytest.mark.parametrize("url", ["durable+embedded://", "durable+embedded:///srv/media"])
def test_the_embedded_postgres_is_a_broker_too(url: str) -> None:
    assert database_url(Connection(url)) == url.removeprefix("durable+")


def test_the_banner_of_a_worker_shows_no_password() -> None:
    assert Connection("durable+postgresql://ada:secret@db/media").as_uri() == (
        "durable+postgresql://ada:**@db/media"
    )


def test_a_connection_s_password_is_where_celery_takes_it_out_and_nowhere_else() -> None:
    connection = Connection("durable+postgresql://ada:s%20cret@db/media")
    for one in (connection, connection.clone()):
        told = one.info()
        assert told.pop("password") == "s cret"
        assert "cret" not in repr(told)
        assert "cret" not in repr(one)


def test_a_url_of_another_kind_is_an_error_that_says_what_to_use() -> None:
    with pytest.raises(ConfigurationError, match=r"use durable\+postgresql://"):
        Connection("durable+mysql://localhost/media").connect()


def test_an_option_that_cannot_be_meant_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match=r"\['lease'\] = 0"):
        Connection("durable+postgresql:///media", transport_options={"lease": 0}).connect()
