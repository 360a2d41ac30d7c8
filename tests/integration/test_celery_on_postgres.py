"""What Celery's users expect of a broker, on the Postgres broker and with real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.flower import ADA, BASIC, FlowerServer
from harness.postgres import fresh_database
from harness.proxy import proxied
from harness.setup import Setup
from harness.waiting import eventually, take
from harness.workers import Worker, environment
from kombu import compression
from messaging.setup import MessagingSetup

from celery_durable.config import Settings
from celery_durable.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERIALIZERS = ["json", "pickle", "yaml", "msgpack"]
COMPRESSIONS = [None, *compression.encoders()]


class Place:
    """An app with plain tasks on a database of its own."""

    def __init__(self, url: str, folder: str, **settings: Any) -> None:
        self.setup = MessagingSetup(f"durable+{url}", "", folder, "work", settings)
        self.ledger, self.gates = self.setup.ledger, self.setup.gates
        self.app = self.setup.app()
        self.store = Store(url, Settings())
        self.store.migrate()
        self.workers: list[Worker] = []

    def worker(self, **options: Any) -> Worker:
        self.workers.append(Worker(self.setup, app="messaging.app", **options))
        return self.workers[-1].wait_until_ready()

    def send(self, *names: str, **options: Any) -> None:
        for name in names:
            self.app.send_task("handle", (name,), **options)

    def held(self) -> int:
        sql = b"select count(*) as n from durable.claim"
        rows = self.store.connections.once(lambda connection: connection.execute(sql).fetchall())
        return int(rows[0]["n"])

    def leave(self) -> None:
        for worker in self.workers:
            worker.clean_up()
        self.app.close()
        self.store.close()


@pytest.fixture(scope="module")
def places(postgres_url: str) -> Callable[..., Any]:
    """Return a context manager that makes a place."""

    @contextmanager
    def make(**settings: Any) -> Iterator[Place]:
        folder = tempfile.mkdtemp(prefix="durable-celery-")
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            made = Place(stack.enter_context(fresh_database(postgres_url)), folder, **settings)
            stack.callback(made.leave)
            yield made

    return make


@pytest.fixture
def place(places: Callable[..., Any]) -> Iterator[Place]:
    with places() as made:
        yield made


# -- what is in a message ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader_of_everything(places: Callable[..., Any]) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch, places(accept_content=SERIALIZERS) as made:
        patch.setenv("C_FORCE_ROOT", "1")  # what Celery wants of those who accept pickle as root
        made.worker()
        yield made


@pytest.mark.parametrize("squeezed", COMPRESSIONS)
@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_every_serializer_and_compression_of_kombu_passes(
    reader_of_everything: Place, serializer: str, squeezed: str | None
) -> None:
    name = f"{serializer} {squeezed} ü{'x' * 2000}"

    reader_of_everything.send(name, serializer=serializer, compression=squeezed)

    reader_of_everything.ledger.wait_for("end", name)


# -- who else is there ------------------------------------------------------------------------------------


def test_a_worker_that_starts_learns_from_the_others_and_notices_when_one_dies(place: Place) -> None:
    first = place.worker(alone=False)
    revoked = str(uuid.uuid4())
    place.app.control.revoke(revoked, reply=True, timeout=10, limit=1)

    second = place.worker(alone=False, options=("-l", "DEBUG"))
    assert "mingle: sync with 1 nodes" in second.output
    assert "mingle: sync complete" in second.output
    told = place.app.control.inspect([second.name], timeout=10, limit=1).revoked()
    assert told == {second.name: [revoked]}

    second.wait_for_log(f"{first.name} joined the party")
    first.kill9()
    second.wait_for_log(f"missed heartbeat from {first.name}", timeout=40)


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_every_pool_handles_tasks_and_answers_while_it_does(place: Place, pool: str) -> None:
    worker = place.worker(pool=pool, alone=False)
    place.send("first", "second")
    place.ledger.wait_for("end", "second")

    assert list(place.app.control.inspect([worker.name], timeout=10, limit=1).ping() or {}) == [worker.name]


# -- limits that change -----------------------------------------------------------------------------------


def test_a_pool_that_grows_takes_more_messages_and_one_that_shrinks_fewer(places: Callable[..., Any]) -> None:
    with places(worker_prefetch_multiplier=1) as place:
        worker = place.worker(concurrency=1)
        told = {"destination": [worker.name], "reply": True, "timeout": 10, "limit": 1}
        for name in ("a", "b", "c"):
            place.gates.close(name)
        place.send("a", "b", "c")
        place.ledger.wait_for("start", "a")
        assert place.held() == 1

        place.app.control.pool_grow(1, **told)
        place.ledger.wait_for("start", "b")  # Celery starts the child when it looks after its pool
        assert place.held() == 2
        for name in ("a", "b", "c"):
            place.gates.open(name)
        place.ledger.wait_for("end", "c")
        eventually(lambda: place.held() == 0)

        place.app.control.pool_shrink(1, **told)
        place.gates.close("d")
        place.send("d", "e")
        place.ledger.wait_for("start", "d")
        take(4.5)  # more than one look around
        assert place.held() == 1
        place.gates.open("d")
        place.ledger.wait_for("end", "e")


def test_a_worker_consumes_another_queue_when_it_is_told_to_and_leaves_it_again(place: Place) -> None:
    worker = place.worker()
    told = {"destination": [worker.name], "reply": True, "timeout": 10, "limit": 1}
    place.app.control.add_consumer("other", **told)
    place.send("one", queue="other")
    place.ledger.wait_for("end", "one")

    place.app.control.cancel_consumer("other", **told)
    place.send("two", queue="other")
    place.send("three")
    place.ledger.wait_for("end", "three")
    take(4.5)  # more than one look around
    assert place.ledger.count("start", "two") == 0

    place.app.control.add_consumer("other", **told)
    place.ledger.wait_for("end", "two")


# -- other programs ---------------------------------------------------------------------------------------


def test_beat_publishes_what_is_due(places: Callable[..., Any]) -> None:
    entry = {"task": "handle", "schedule": 0.5, "args": ["tick"]}
    with places(beat_schedule={"tick": entry}, beat_max_loop_interval=1) as place:
        place.worker()
        command = [sys.executable, "-m", "celery", "-A", "messaging.app", "beat", "-s", "schedule"]
        variables = {**environment(), **place.setup.environment()}
        beat = subprocess.Popen(command, cwd=place.setup.folder, env=variables)
        try:
            place.ledger.wait_for("end", "tick", times=3, timeout=40)
        finally:
            beat.terminate()
            assert beat.wait(20) == 0


def test_flower_shows_workers_tasks_and_queues(places: Callable[..., Any]) -> None:
    with places(worker_prefetch_multiplier=1) as place:
        worker = place.worker(options=("-E",))
        flower = FlowerServer(place.setup, BASIC, app="messaging.app")
        try:
            with flower.client(auth=ADA) as client:
                eventually(lambda: worker.name in client.get("/api/workers?refresh=1").json(), timeout=40)
                place.gates.close("seen")
                place.send("seen", "waiting")
                place.ledger.wait_for("start", "seen")

                queues = client.get("/api/queues/length").json()["active_queues"]
                (work,) = [queue for queue in queues if queue["name"] == "work"]
                assert work == {
                    "name": "work",
                    "messages": 2,
                    "messages_ready": 1,
                    "messages_unacknowledged": 1,
                    "consumers": 1,
                }
                page = client.get("/broker").text
                assert 'id="work"' in page
                assert "No queue data" not in page

                place.gates.open("seen")
                place.ledger.wait_for("end", "waiting")

                def states() -> list[str]:
                    return [task["state"] for task in client.get("/api/tasks").json().values()]

                eventually(lambda: states() == ["SUCCESS"] * 2, what=lambda: f"{states()} {flower.output}")
        finally:
            flower.stop()


# -- cost -------------------------------------------------------------------------------------------------


def test_an_idle_worker_asks_fewer_than_five_questions_a_second(place: Place) -> None:
    """With all that a worker consumes: tasks, remote control, mingle and gossip."""
    with proxied(place.store.url) as proxy:
        place.worker(broker=f"durable+{proxy.url}", alone=False)
        take(2.0)
        before, began = len(proxy.statements), time.monotonic()
        take(12.0)  # what happens rarely happens more than once
        asked = Counter(statement.split("\n")[0] for statement in proxy.statements[before:])
    assert sum(asked.values()) < 5 * (time.monotonic() - began), asked


def test_an_idle_worker_of_durable_tasks_asks_fewer_than_five_questions_a_second(place: Place) -> None:
    """One Postgres is broker and store, so its keeper's questions count as well."""
    with proxied(place.store.url) as proxy, closing(place.app):
        url = f"durable+{proxy.url}"
        place.workers.append(Worker(Setup(url, url, place.setup.folder, "work"), alone=False))
        place.workers[-1].wait_until_ready()
        take(2.0)
        before, began = len(proxy.statements), time.monotonic()
        take(12.0)  # what happens rarely happens more than once
        asked = Counter(statement.split("\n")[0] for statement in proxy.statements[before:])
    assert sum(asked.values()) < 5 * (time.monotonic() - began), asked
