"""A keeper's thread, or one of the program's own, beside runs: what it sends belongs to none of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from delivering import World, delivering
from inspecting import execute

import celery_durable as durable
from celery_durable.keeper.thread import KeeperThread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store
    from celery_durable.store.keeping import KeeperStore


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


class Sender(KeeperThread):
    """Sends a task when a run is in its body, and says which."""

    def __init__(self, world: World, task: Any) -> None:
        super().__init__(world.store, "sender")
        self.task = task
        self.may_send, self.has_sent = threading.Event(), threading.Event()

    def run_once(self, keeper: KeeperStore) -> dict[str, int]:
        del keeper
        self.may_send.wait(10)
        self.task.delay()
        self.has_sent.set()
        self.stopping.wait(10)
        return {}


def test_what_a_keepers_thread_sends_is_no_child_of_the_run_that_is_executed_beside_it(
    world: World,
) -> None:
    def told() -> None:
        """Do nothing."""

    sender = Sender(world, world.task(told))

    def body() -> bool:
        sender.may_send.set()
        return sender.has_sent.wait(10)

    sender.start()
    try:
        run_id = world.run(world.task(body))
    finally:
        sender.stop(10)

    assert world.result(run_id) is True
    assert world.steps(run_id) == {}


def test_what_a_thread_sends_that_is_older_than_the_run_is_no_child_of_it(world: World) -> None:
    """A consumer of something else, started with the process: it may send, whatever is executed beside it."""

    def waits() -> str:
        return str(durable.wait_for_signal("go"))

    def told() -> None:
        """Do nothing."""

    task, waiting = world.task(told), world.run(world.task(waits))
    with ThreadPoolExecutor(1) as older:
        older.submit(int).result(10)

        def body() -> bool:
            older.submit(task.delay).result(10)
            older.submit(durable.send_signal, waiting, "go", 1, app=world.app).result(10)
            return True

        run_id = world.run(world.task(body))

    assert world.result(run_id) is True
    assert world.steps(run_id) == {}
    assert {row["parent"] for row in execute(world.store, "select parent from durable.run")} == {None}
