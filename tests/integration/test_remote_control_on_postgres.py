"""Remote control, events and revoke on the Postgres broker, as on Redis and RabbitMQ."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from harness.postgres import fresh_database
from harness.waiting import eventually
from harness.workers import Worker
from messaging.setup import MessagingSetup

from celery_durable.config import Settings
from celery_durable.store import Store
from celery_durable.transport import share_settings

if TYPE_CHECKING:
    from collections.abc import Iterator


PASSWORD = "s3cret-word"


class Place:
    """Two workers that send events, and their app."""

    def __init__(self, url: str, folder: str) -> None:
        broker = f"durable+{url.replace('postgres@', f'postgres:{PASSWORD}@', 1)}"  # the server asks for none
        self.setup = MessagingSetup(broker, "", folder, "work", {})
        self.app = self.setup.app()
        self.workers = [Worker(self.setup, app="messaging.app", concurrency=1, options=("-E",)) for _ in "ab"]
        for worker in self.workers:
            worker.wait_until_ready()


@pytest.fixture(scope="module")
def place(postgres_url: str) -> Iterator[Place]:
    folder = tempfile.mkdtemp(prefix="durable-control-")
    with fresh_database(postgres_url) as url:
        store = Store(url, Settings())
        store.migrate()
        made = Place(url, folder)
        yield made
        for worker in made.workers:
            worker.clean_up()
        made.app.close()
        store.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_every_worker_answers_a_broadcast_and_only_the_one_that_is_meant_answers_alone(place: Place) -> None:
    names = {worker.name for worker in place.workers}
    inspect = place.app.control.inspect(timeout=10, limit=2)
    assert set(inspect.ping() or {}) == names

    one = place.workers[0].name
    assert list(place.app.control.inspect([one], timeout=10, limit=1).stats() or {}) == [one]


def test_nothing_that_a_worker_tells_or_logs_has_the_broker_s_password(place: Place) -> None:
    assert PASSWORD in place.setup.broker
    inspect = place.app.control.inspect(timeout=10, limit=2)
    stats = inspect.stats() or {}

    assert {one["broker"]["hostname"].partition("@")[0] for one in stats.values()} == {
        "durable+postgresql://postgres"
    }
    for told in (stats, inspect.conf(), inspect.report()):
        assert told
        assert PASSWORD not in str(told)
    assert not any(PASSWORD in worker.output for worker in place.workers)


def test_events_reach_whoever_listens_also_two_at_once(place: Place) -> None:
    seen: list[list[str]] = [[], []]
    with place.app.connection_for_read() as first, place.app.connection_for_read() as second:
        ready = threading.Barrier(3)

        def listen(number: int, connection: Any) -> None:
            def note(event: dict[str, Any]) -> None:
                seen[number].append(event["type"])
                receiver.should_stop = event["type"] == "task-succeeded"

            receiver = place.app.events.Receiver(connection, handlers={"*": note})
            receiver.on_consume_ready = lambda *_, **__: ready.wait(20)
            for _ in receiver.consume(limit=None, timeout=20, wakeup=False):
                pass

        threads = [
            threading.Thread(target=listen, args=(number, connection), daemon=True)
            for number, connection in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        ready.wait(20)
        place.app.send_task("handle", ("seen",))
        for thread in threads:
            thread.join(30)
    assert all("task-succeeded" in one for one in seen), seen


def test_a_revoked_task_is_not_executed(place: Place) -> None:
    ledger, revoked = place.setup.ledger, str(uuid.uuid4())
    place.app.control.revoke(revoked, reply=True, timeout=10, limit=2)  # both have heard of it

    place.app.send_task("handle", ("revoked",), task_id=revoked)
    place.app.send_task("handle", ("after",))
    ledger.wait_for("end", "after")

    eventually(lambda: any(f"Discarding revoked task: handle[{revoked}]" in w.output for w in place.workers))
    assert ledger.count("start", "revoked") == 0


def test_the_broker_follows_the_settings_of_the_store_unless_told_otherwise() -> None:
    app = MessagingSetup(
        "durable+postgresql:///x", "", "", "work", {"broker_transport_options": {"lease": 5}}
    ).app()
    share_settings(app.conf, Settings(schema="shop", prepare_statements=False))

    assert app.conf.broker_transport_options == {
        "schema": "shop",
        "auto_migrate": None,
        "prepare_statements": False,
        "lease": 5,
    }
    app.close()
