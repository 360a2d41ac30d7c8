"""A keeper's thread in a process that executes runs: what it sends belongs to none of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from delivering import World, delivering

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
