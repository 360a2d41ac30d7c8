"""Workers of plain, late acknowledging tasks die and freeze: no message is lost, or with two of them."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import tempfile
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness import postgres
from harness.waiting import eventually, take
from harness.workers import Worker
from messaging.setup import MessagingSetup

from celery_durable.config import Settings
from celery_durable.store import Store
from celery_durable.store.messages import MessageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEASE = 6.0


class Office:
    """An app with plain tasks, its broker and its workers."""

    def __init__(self, url: str, folder: str, **settings: Any) -> None:
        options = {"lease": LEASE, "auto_migrate": True, **settings.pop("options", {})}
        chosen = {"broker_transport_options": options, **settings}
        self.setup = MessagingSetup(f"durable+{url}", "", folder, "work", chosen)
        self.ledger, self.gates = self.setup.ledger, self.setup.gates
        self.app = self.setup.app()
        self.store = Store(url, Settings())
        self.messages = MessageStore(self.store.connections, schema="durable")
        self.workers: list[Worker] = []

    def worker(self, **options: Any) -> Worker:
        made = Worker(self.setup, app="messaging.app", **options)
        self.workers.append(made)
        return made.wait_until_ready()

    def send(self, *names: str) -> None:
        for name in names:
            self.app.send_task("handle", (name,))

    def left(self) -> int:
        return int(self.rows("select count(*) as n from durable.message where queue = 'work'")[0]["n"])

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return self.store.connections.once(lambda connection: connection.execute(sql.encode()).fetchall())

    def state(self) -> str:
        """Return what to look at when messages are not handled."""
        queues = self.rows(
            "select m.queue, c.consumer, count(*) as n from durable.message m"
            " left join durable.claim c on c.message = m.id group by 1, 2"
        )
        consumers = self.rows("select id, pid, beat, wanted, queues from durable.consumer")
        logs = "\n".join(worker.output[-1500:] for worker in self.workers if worker.alive)
        return f"{queues}\n{consumers}\n{self.ledger.count('end')} handled\n{logs}"

    def leave(self) -> None:
        for worker in self.workers:
            worker.clean_up()
        self.app.close()
        self.store.close()


@pytest.fixture
def office(postgres_url: str) -> Iterator[Callable[..., Office]]:
    with ExitStack() as stack:

        def make(**settings: Any) -> Office:
            folder = tempfile.mkdtemp(prefix="durable-office-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            url = settings.pop("url", None) or stack.enter_context(postgres.fresh_database(postgres_url))
            made = Office(url, folder, **settings)
            stack.callback(made.leave)
            made.store.migrate()
            return made

        yield make


@contextmanager
def closed(office: Office, *names: str) -> Iterator[None]:
    for name in names:
        office.gates.close(name)
    yield
    for name in names:
        office.gates.open(name)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_a_worker_that_is_killed_loses_what_it_had_claimed_to_another_before_its_lease_is_over(
    office: Callable[..., Office], pool: str
) -> None:
    place = office(options={"lease": 30.0})
    victim = place.worker(pool=pool, concurrency=1)
    place.gates.close("one")
    place.send("one", "two", "three")
    place.ledger.wait_for("start", "one")
    eventually(lambda: place.rows("select count(*) as n from durable.claim")[0]["n"] >= 1)
    survivor = place.worker(pool=pool, concurrency=1)

    victim.kill9()
    place.gates.open("one")

    for name in ("one", "two", "three"):
        assert place.ledger.wait_for("end", name, timeout=25).run == survivor.name
    assert [entry.detail for entry in place.ledger.entries("start", "one")] == [False, True]
    eventually(lambda: place.left() == 0)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_an_idle_worker_can_be_stopped_while_postgres_is_away(
    office: Callable[..., Office], private_postgres: postgres.PrivatePostgres, pool: str
) -> None:
    """Its heartbeats are events, and Celery would try to send one until Postgres is back."""
    place = office(url=private_postgres.url)
    worker = place.worker(pool=pool, concurrency=1, alone=False)

    private_postgres.stop()
    take(3.0)  # a heartbeat is due every two
    ended = worker.terminate(timeout=15)
    private_postgres.start()

    assert ended == 0


def test_a_worker_that_is_frozen_for_longer_than_its_lease_disturbs_nobody_when_it_is_back(
    office: Callable[..., Office],
) -> None:
    place = office(options={"lease": 3.0})
    frozen = place.worker(concurrency=1)
    with closed(place, "long"):
        place.send("long")
        place.ledger.wait_for("start", "long")
        frozen.freeze()
        survivor = place.worker(concurrency=1)
        again = place.ledger.wait_for("start", "long", times=2, timeout=25)
        assert again.run == survivor.name
        (row,) = place.rows("select consumer, number from durable.claim")

        frozen.thaw()
        frozen.wait_for_log("was silent for too long")
        assert place.rows("select consumer, number from durable.claim") == [row]
    place.ledger.wait_for("end", "long", times=2)
    eventually(lambda: place.left() == 0)

    place.send("next")  # both are consumers again
    place.ledger.wait_for("end", "next")


@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_that_was_frozen_does_not_begin_what_it_had_only_received(
    office: Callable[..., Office],
    pool: str,
    late: bool,  # noqa: FBT001
) -> None:
    place = office(options={"lease": 3.0}, task_acks_late=late)
    frozen = place.worker(pool=pool, concurrency=1)
    with closed(place, "long"):
        place.send("long", "second", "third")
        place.ledger.wait_for("start", "long")
        eventually(lambda: place.rows("select count(*) as n from durable.claim")[0]["n"] >= 2 + late)
        frozen.freeze()
        survivor = place.worker(pool="threads", concurrency=2)
        for name in ("second", "third"):
            assert place.ledger.wait_for("end", name, timeout=25).run == survivor.name

        frozen.thaw()
        frozen.wait_for_log("was silent for too long")
    place.ledger.wait_for("end", "long", times=1 + late)
    frozen.wait_for_log("Connection to broker lost")
    eventually(lambda: place.left() == 0)
    survivor.terminate()

    place.send("next")
    assert place.ledger.wait_for("end", "next").run == frozen.name
    assert [place.ledger.count("start", name) for name in ("second", "third")] == [1, 1]


def test_a_long_task_is_not_handed_out_twice_while_its_worker_lives(office: Callable[..., Office]) -> None:
    place = office(options={"lease": 1.0}, worker_prefetch_multiplier=1)
    place.worker(pool="solo")
    with closed(place, "long"):
        place.send("long")
        place.ledger.wait_for("start", "long")
        place.worker(pool="solo")
        place.send(*(f"short{number}" for number in range(3)))
        for number in range(3):
            place.ledger.wait_for("end", f"short{number}")
        # the second worker looks for the dead every two seconds; it has looked for longer than two leases
        eventually(lambda: place.rows("select min(beat) as n from durable.consumer")[0]["n"] >= 15)
    place.ledger.wait_for("end", "long")
    assert place.ledger.count("start", "long") == 1


def test_a_worker_that_is_told_to_stop_hands_back_what_it_had_not_begun(
    office: Callable[..., Office],
) -> None:
    place = office(options={"lease": 60.0})
    leaving = place.worker(concurrency=1)
    with closed(place, "first"):
        place.send("first", "second", "third")
        place.ledger.wait_for("start", "first")
        eventually(lambda: place.rows("select count(*) as n from durable.claim")[0]["n"] == 3)
        leaving.signal(signal.SIGTERM)
        leaving.wait_for_log("Warm shutdown")
    leaving.wait_for_end()
    assert place.rows("select count(*) as n from durable.claim") == [{"n": 0}]

    place.worker(concurrency=1)
    for name in ("second", "third"):
        place.ledger.wait_for("end", name)
    assert place.ledger.count("start") == 3


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_a_worker_without_an_event_loop_begins_nothing_more_when_it_is_told_to_stop(
    office: Callable[..., Office], pool: str
) -> None:
    place = office(options={"lease": 60.0})
    leaving = place.worker(pool=pool, concurrency=1, settings={"worker_prefetch_multiplier": 20})
    with closed(place, "first"):
        place.send("first", *(f"later{number}" for number in range(10)))
        place.ledger.wait_for("start", "first")
        eventually(lambda: place.rows("select count(*) as n from durable.claim")[0]["n"] == 11)
        leaving.signal(signal.SIGTERM)
        leaving.wait_for_log("Warm shutdown")
    leaving.wait_for_end()

    assert place.ledger.count("start") <= 3  # gevent's main loop waits for its pool and goes on with the next
    assert place.left() == 11 - place.ledger.count("end")


def test_without_prefetch_a_worker_claims_a_message_only_when_it_has_a_child_for_it(
    office: Callable[..., Office],
) -> None:
    place = office(worker_disable_prefetch=True)
    worker = place.worker(concurrency=1)
    if "Ignoring disable_prefetch" in worker.output or not hasattr(place.app.conf, "worker_disable_prefetch"):
        pytest.skip("this Celery has no worker_disable_prefetch")
    with closed(place, "first"):
        place.send("first", "second", "third")
        place.ledger.wait_for("start", "first")
        place.rows("select pg_sleep(2)")  # two looks around
        assert place.rows("select count(*) as n from durable.claim") == [{"n": 1}]
    for name in ("second", "third"):
        place.ledger.wait_for("end", name)


def test_workers_go_on_after_postgres_was_away_and_know_what_they_had(
    office: Callable[..., Office], private_postgres: postgres.PrivatePostgres
) -> None:
    place = office(url=private_postgres.url, worker_prefetch_multiplier=1)
    workers = [place.worker(concurrency=1) for _ in range(2)]
    with closed(place, "during"):
        place.send("during")
        place.ledger.wait_for("start", "during")
        private_postgres.stop(crash=True)
        for worker in workers:
            worker.wait_for_log("broker is away")
        private_postgres.start()
        for worker in workers:
            worker.wait_for_log("consuming goes on")
        place.store.close()
        place.send("after")
        place.ledger.wait_for("end", "after")
    place.ledger.wait_for("end", "during")
    eventually(lambda: place.left() == 0)
    assert place.ledger.count("start", "during") == 1
    assert not any("Traceback" in worker.output for worker in workers)


def test_a_message_that_kills_its_worker_every_time_ends_in_the_dead_letter_queue(
    office: Callable[..., Office],
) -> None:
    place = office(options={"lease": 30.0, "max_returns": 1})
    place.gates.close("poison")
    place.send("poison")
    for times in (1, 2):
        victim = place.worker(concurrency=1)
        place.ledger.wait_for("start", "poison", times=times, timeout=30)
        victim.kill9()
    place.gates.open("poison")
    place.worker(concurrency=1)

    dead = place.messages
    eventually(lambda: (state := dead.state("work.dead")) is not None and state.messages == 1, timeout=30)
    place.send("next")
    place.ledger.wait_for("end", "next")
    assert place.ledger.count("start", "poison") == 2


def test_messages_under_random_kills_are_all_handled_and_never_by_two_live_workers(
    office: Callable[..., Office], record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    chance = random.Random(seed)
    place = office(options={"lease": 30.0})
    alive = [place.worker(concurrency=2) for _ in range(2)]
    names = [f"m{number}" for number in range(400)]
    place.send(*names)
    for part in range(4):
        enough = part * 80 + chance.randint(1, 80)
        eventually(lambda enough=enough: place.ledger.count("end") >= enough, timeout=60, what=place.state)
        victim = alive.pop(chance.randrange(len(alive)))
        victim.kill9()
        place.ledger.write("died", victim.name)
        alive.append(place.worker(concurrency=2))

    eventually(lambda: place.left() == 0, timeout=90, what=place.state)
    entries = place.ledger.entries()
    died = {entry.name: entry.at for entry in entries if entry.event == "died"}
    starts: dict[str, list[Any]] = {}
    for entry in entries:
        if entry.event == "start":
            starts.setdefault(entry.name, []).append(entry)
    assert set(starts) == set(names), f"seed {seed}"
    for name, times in starts.items():
        for earlier, later in itertools.pairwise(times):
            assert died.get(str(earlier.run), float("inf")) <= later.at, (
                f"seed {seed}: {name} was with {earlier.run} and with {later.run}"
            )
    ended = Counter(entry.name for entry in entries if entry.event == "end")
    assert set(ended) == set(names)
