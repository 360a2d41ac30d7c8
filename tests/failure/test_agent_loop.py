"""An agent's worker dies at every boundary: each call is made once, or again with its key and content."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import pytest
from harness.programs import Program, imported

from celery_durable.testing import Crashes, pointed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.brokers import PrivateRedis

ANSWER = "the blue room for ada and the green room for bob"
MOMENTS = {  # of each call: when the child of its worker dies
    "ask_model": "answered",
    "free_rooms": "received",
    "ask_model#2": "done",
    "book_room": "done",
    "book_room#2": "answered",
    "ask_model#3": "received",
}
STEPS = list(MOMENTS)


@pytest.fixture
def program() -> Iterator[Any]:
    with imported("book_rooms") as module:
        yield module


class Server(ThreadingHTTPServer):
    """The model and the hotel of the program, with a log of their own.

    Arguments:
        program: the module.
        at: what is done at a moment of each call: `received`, `done` and not answered, or `answered`.
    """

    def __init__(self, program: Any, at: Callable[[str, str], object]) -> None:
        class Handler(program.Services):
            calls: ClassVar[list[tuple[str, bytes]]] = []
            booked: ClassVar[dict[str, str]] = {}

            def result(self, key: str, content: Any) -> Any:
                at("received", key)
                found = super().result(key, content)
                at("done", key)
                return found

            def answer(self, content: Any) -> None:
                super().answer(content)
                at("answered", self.headers["Idempotency-Key"])

        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.booked = Handler.calls, Handler.booked
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that are gone."""

    @property
    def times(self) -> Counter[str]:
        """How often each key was seen, in the order of their first calls."""
        return Counter(key for key, _ in self.calls)

    @property
    def contents(self) -> Counter[str]:
        """How many different contents came with each key."""
        return Counter(key for key, _ in set(self.calls))

    def forget(self) -> None:
        self.calls.clear()
        self.booked.clear()


@contextmanager
def serving(program: Any, at: Callable[[str, str], object] = lambda moment, key: None) -> Iterator[Server]:
    with Server(program, at) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_agent_killed_before_or_after_any_write_repeats_a_call_with_its_key_or_not_at_all(
    program: Any, durable_store: Any
) -> None:
    url = f"durable+{durable_store.url}"
    with serving(program) as server, pointed(program.app, backend=url, broker=url):

        def effects() -> Any:
            return sorted(server.contents.items()), sorted(server.booked.items())

        question = program.assistant.s(server.url, "Rooms for Ada and Bob, please.")
        found = Crashes(program.app, kill=True).everywhere(question, effects=effects, reset=server.forget)

    assert found == [*(f"step {key!r}" for key in STEPS), "the result of book_rooms.assistant"]
    assert [key.partition("/")[2] for key in server.times] == STEPS
    assert set(server.contents.values()) == {1}
    assert len(server.booked) == 2


def test_an_agent_whose_worker_loses_its_child_at_every_call_makes_each_once_or_again_with_its_key(
    program: Any, private_redis: PrivateRedis, database_url: str, tmp_path: Path
) -> None:
    place = {"backend": f"durable+{database_url}", "broker": private_redis.url}
    copy = Program("book_rooms", tmp_path, **place)
    killed: list[str] = []

    with copy.worker(concurrency=1) as pid:

        def kill(moment: str, key: str) -> None:
            if moment == MOMENTS[key.partition("/")[2]] and key not in killed:
                killed.append(key)
                with suppress(psutil.NoSuchProcess):  # the worker's end after the last call
                    (child,) = psutil.Process(pid).children()
                    child.kill()  # it reads no answer any more: a system call does not return to it

        with serving(program, kill) as server, pointed(program.app, **place):
            result = program.assistant.delay(server.url, "Rooms for Ada and Bob, please.")
            answer = result.get(timeout=90)

    keys = {f"{result.id}/{step}": moment for step, moment in MOMENTS.items()}
    assert answer == ANSWER, copy.log
    assert list(server.times) == list(keys)
    assert set(killed) == set(keys)
    assert set(server.contents.values()) == {1}
    for key, times in server.times.items():
        assert times in ((1, 2) if keys[key] == "answered" else (2,)), key
    assert list(server.booked) == [f"{result.id}/{step}" for step in ("book_room", "book_room#2")]
