"""The broker of the embedded default: real workers on files, killed at any moment beside others."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer, Queue

from celery_durable.store.embedded.locks import wait_until
from celery_durable.transport import register
from celery_durable.transport.spool import Binding, Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

register()

PATIENCE = 60.0
PACKAGE = Path(str(find_spec("celery_durable").submodule_search_locations[0]))  # type: ignore[union-attr,index]
APP = """
from celery import Celery
from celery_durable.transport import register

register()
app = Celery("app", broker="durable+embedded://")
app.conf.update(
    worker_send_task_events=True, task_ignore_result=True, worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True, worker_hijack_root_logger=False,
)

@app.task(name="mark")
def mark(number):
    with open("marks", "a") as file:
        file.write(f"{number}\\n")
"""


class Project:
    """A Celery app in a directory, and its workers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "app.py").write_text(APP)
        broker = f"durable+embedded://{directory}/.durable"
        self.app = Celery("app", broker=broker, set_as_current=False)
        self.workers: list[subprocess.Popen[str]] = []

    def start_worker(self, name: str) -> subprocess.Popen[str]:
        path = os.pathsep.join((str(self.directory), str(PACKAGE.parent)))
        arguments = ["-A", "app", "worker", "-c", "2", "-n", f"{name}@test", "-l", "INFO"]
        with (self.directory / f"{name}.log").open("a") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", *arguments],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        self.workers.append(worker)
        return worker

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def wait_for_ready(self, name: str, times: int = 1) -> None:
        assert wait_until(lambda: self.log(name).count(f"{name}@test ready") >= times, PATIENCE), self.log(
            name
        )

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.app.send_task("mark", (number,), ignore_result=True)

    def marks(self) -> Counter[int]:
        path = self.directory / "marks"
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                kill_whole(worker)
        self.app.close()


def kill_whole(worker: subprocess.Popen[str]) -> None:
    """SIGKILL for the worker and its pool."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    found = Project(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "broker")


def drain(spool: Spool, queue: str) -> list[bytes]:
    found = []
    while (message := spool.get(queue, bytes)) is not None:
        found.append(message)
    return found


def test_two_workers_share_two_hundred_messages_and_answer_ping_and_send_events(project: Project) -> None:
    events: Counter[str] = Counter()
    with project.app.connection_for_read() as connection:
        receiver = project.app.events.Receiver(
            connection, handlers={"*": lambda event: events.update([event["type"]])}
        )
        consumer = threading.Thread(target=receiver.capture, kwargs={"timeout": 60}, daemon=True)
        consumer.start()
        for name in ("one", "two"):
            project.start_worker(name)
        for name in ("one", "two"):
            project.wait_for_ready(name)

        project.publish(*range(200))

        assert wait_until(lambda: sum(project.marks().values()) >= 200, PATIENCE)
        assert project.marks() == Counter(range(200))
        assert all("received" in project.log(name) for name in ("one", "two"))
        answers = project.app.control.ping(timeout=5.0, limit=2)
        assert sorted(name for answer in answers for name in answer) == ["one@test", "two@test"]
        assert wait_until(lambda: events["task-succeeded"] == 200, PATIENCE), events
        receiver.should_stop = True
        consumer.join(PATIENCE)


def test_a_worker_killed_again_and_again_neither_crashes_nor_blocks_the_other(project: Project) -> None:
    survivor = project.start_worker("survivor")
    project.wait_for_ready("survivor")
    published = 0
    for kills in range(1, 6):
        victim = project.start_worker("victim")
        project.wait_for_ready("victim", kills)
        before = sum(project.marks().values())
        project.publish(*range(published, published + 40))
        published += 40
        assert wait_until(lambda before=before: sum(project.marks().values()) > before + 5, PATIENCE)  # type: ignore[misc]
        kill_whole(victim)

    # Then: the other is alive, answers, and works
    project.publish(*range(10_000, 10_050))
    assert wait_until(lambda: set(range(10_000, 10_050)) <= set(project.marks()), PATIENCE)
    assert survivor.poll() is None
    assert [*project.app.control.ping(timeout=2.0, limit=1)[0]] == ["survivor@test"]
    log = project.log("survivor")
    assert "Traceback" not in log
    assert "CRITICAL" not in log
    # Lost is at most what the killed had reserved: two executing and two waiting, five times
    assert len(project.marks()) >= published + 50 - 5 * 4
    assert max(project.marks().values()) == 1


def test_a_reader_that_must_acknowledge_first_is_not_kept_waiting_for_that(tmp_path: Path) -> None:
    # Given a prefetch limit of one, and a reader that acknowledges between two looks, as Celery 5.5 does
    with Connection(f"durable+embedded://{tmp_path}") as connection:
        queue = Queue("work", Exchange("work"), "work", channel=connection.default_channel)
        producer = connection.Producer()
        for number in range(2):
            producer.publish(number, exchange="work", routing_key="work", declare=[queue])
        received: list[Any] = []
        with connection.Consumer([queue], callbacks=[lambda *message: received.append(message)]) as consumer:
            consumer.qos(prefetch_count=1)
            connection.drain_events(timeout=5)
            begin = time.monotonic()

            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=60)
            assert time.monotonic() - begin < 30
            received[0][1].ack()
            connection.drain_events(timeout=5)
            received[1][1].ack()

    assert [body for body, _ in received] == [0, 1]


def test_a_killed_writer_leaves_no_half_message(tmp_path: Path, spool: Spool) -> None:
    # Given a process that writes large messages and is killed in the middle of one, whichever that is
    writer = (
        "import sys; from pathlib import Path; from celery_durable.transport.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "while True: spool.put('q', b'x' * 4_000_000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    for _ in range(10):
        command = [sys.executable, "-c", writer, str(tmp_path / "broker")]
        process = subprocess.Popen(command, env=environment)
        assert wait_until(lambda: spool.size("q") >= 3, PATIENCE, poll=0.001)
        process.kill()
        process.wait()

        assert {len(message) for message in drain(spool, "q")} == {4_000_000}

    # And what it left elsewhere goes once it is old
    leftovers = list((tmp_path / "broker" / "incoming").iterdir())
    for path in leftovers:
        os.utime(path, (0, 0))
    spool.tidy()
    assert list((tmp_path / "broker" / "incoming").iterdir()) == []


def test_each_message_reaches_one_of_many_readers(tmp_path: Path, spool: Spool) -> None:
    for number in range(600):
        spool.put("q", str(number).encode())
    reader = (
        "import sys; from pathlib import Path; from celery_durable.transport.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "while (message := spool.get('q', bytes)) is not None: print(message.decode())\n"
    )
    command = [sys.executable, "-c", reader, str(tmp_path / "broker")]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    readers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]

    read = [number for each in readers for number in each.communicate()[0].split()]

    assert [each.returncode for each in readers] == [0, 0, 0, 0]
    assert Counter(map(int, read)) == Counter(range(600))


@pytest.mark.parametrize("content", [b"", b'{"body": "x', b"[]", b'{"properties": {}}', b"\xff\xfe"])
def test_a_file_that_is_no_message_is_put_aside_and_the_next_one_delivered(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "broker" / "queues" / "q-work"
    folder.mkdir(parents=True)
    (folder / "0-0-broken.msg").write_bytes(content)
    received: list[Any] = []
    with Connection(f"durable+embedded://{tmp_path}") as connection, connection.channel() as channel:
        queue = Queue("work", Exchange("work"), "work", channel=channel)
        Producer(channel).publish({"n": 1}, exchange="work", routing_key="work", declare=[queue])

        with (
            caplog.at_level(logging.WARNING),
            connection.Consumer([queue], callbacks=[lambda body, _: received.append(body)], no_ack=True),
        ):
            connection.drain_events(timeout=5)

    assert received == [{"n": 1}]
    assert (tmp_path / "broker" / "unreadable" / "0-0-broken.msg").read_bytes() == content
    assert "Not a message" in caplog.text


def test_messages_come_in_order_by_urgency_also_when_the_clock_goes_back(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(2_000_000, 0, -1))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    for number in range(200):
        spool.put("q", b"%d" % number, urgency=9)
    spool.put("q", b"urgent", urgency=0)

    assert drain(spool, "q") == [b"urgent", *(b"%d" % number for number in range(200))]


def test_a_queue_of_a_dead_reader_goes_with_its_binding_and_takes_no_more_messages(
    tmp_path: Path, spool: Spool
) -> None:
    spool.declare("events", expires=60.0)
    spool.bind("fan", Binding("", "", "events"))
    spool.put("events", b"early")
    marker = tmp_path / "broker" / "queues" / "q-events" / "expires"
    os.utime(marker, (time.time() - 61, time.time() - 61))

    assert not spool.put("events", b"late")

    assert spool.bindings("fan") == []
    assert not marker.parent.exists()


def test_dead_queues_to_which_nobody_sends_go_when_somebody_connects(tmp_path: Path, spool: Spool) -> None:
    for queue in ("dead", "alive"):
        spool.declare(queue, expires=60.0)
        spool.bind("replies", Binding(queue, "", queue))
    os.utime(tmp_path / "broker" / "queues" / "q-dead" / "expires", (0, 0))

    with Connection(f"durable+embedded://{tmp_path}") as connection:
        connection.connect()

    assert [binding.queue for binding in spool.bindings("replies")] == ["alive"]


def test_a_reader_that_was_frozen_gets_its_queue_and_its_binding_back(tmp_path: Path) -> None:
    received: list[Any] = []
    fan = Exchange("fan", type="fanout")
    url = f"durable+embedded://{tmp_path}"
    with Connection(url) as reader, Connection(url) as writer:
        queue = Queue("control", fan, expires=10.0)
        with reader.Consumer([queue], callbacks=[lambda body, _: received.append(body)], no_ack=True):
            marker = tmp_path / "broker" / "queues" / "q-control" / "expires"
            os.utime(marker, (0, 0))
            producer = writer.Producer()
            producer.publish({"n": 1}, exchange="fan", declare=[fan])
            assert not marker.exists()

            # When it looks for messages again
            with pytest.raises(TimeoutError):
                reader.drain_events(timeout=1.2)
            producer.publish({"n": 2}, exchange="fan")
            reader.drain_events(timeout=5)

    assert received == [{"n": 2}]


def test_workers_and_callers_go_on_when_the_directory_is_removed(project: Project) -> None:
    project.start_worker("one")
    project.wait_for_ready("one")
    project.publish(1)
    assert wait_until(lambda: project.marks()[1] == 1, PATIENCE)

    subprocess.run(["/bin/rm", "-rf", project.directory / ".durable"], check=True)

    project.publish(2)
    assert wait_until(lambda: project.marks()[2] == 1, PATIENCE)


def test_a_queue_can_be_measured_purged_and_deleted_by_another_process(tmp_path: Path) -> None:
    url = f"durable+embedded://{tmp_path}"
    with Connection(url) as connection, Connection(url) as other:
        queue = Queue("work", Exchange("work"), "work", channel=connection.channel())
        producer = connection.Producer()
        for number in range(3):
            producer.publish(number, exchange="work", routing_key="work", declare=[queue])
        channel = other.channel()

        assert channel.queue_declare("work", passive=True).message_count == 3
        assert channel.queue_purge("work") == 3
        channel.queue_delete("work")

        assert list((tmp_path / "broker" / "exchanges").glob("*/*")) == []
        with pytest.raises(other.channel_errors, match="NOT_FOUND"):
            channel.queue_declare("work", passive=True)


def test_nobody_else_can_read_the_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_DURABLE_DIR", str(tmp_path / "state"))
    with Connection("durable+embedded://") as connection:
        connection.connect()

    for folder in (tmp_path / "state", tmp_path / "state" / "broker"):
        assert folder.stat().st_mode & 0o077 == 0
    assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"


def test_priority_is_celery_s_the_higher_the_sooner(tmp_path: Path) -> None:
    with Connection(f"durable+embedded://{tmp_path}") as connection:
        queue = connection.SimpleQueue("work")
        for number, priority in enumerate([0, 5, 9, 5]):
            queue.put(number, priority=priority)

        assert [queue.get(timeout=5).payload for _ in range(4)] == [2, 1, 3, 0]
        queue.close()
