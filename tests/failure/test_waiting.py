"""Those who wait for results outlive Postgres' restarts, forks and a network that swallows everything."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from awaiting import Scene, Stopwatch, ends_at_its_timeout, new_id, scene_on
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import ResultSet
from harness.postgres import fresh_database
from harness.waiting import eventually, take

from celery_durable.exceptions import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.postgres import PrivatePostgres

GEVENT = Path(__file__).parent.parent / "awaiting" / "greenlets.py"


@pytest.fixture
def scene(postgres_url: str) -> Iterator[Scene]:
    with fresh_database(postgres_url) as url, scene_on(url) as made:
        yield made


@contextmanager
def forked(work: Any) -> Iterator[None]:
    """Do `work` in a child; fail unless it returns true there."""
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            ended = 0 if work() else 2
        finally:
            os._exit(ended)
    yield
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("crash", [False, True], ids=["stopped", "crashed"])
def test_a_wait_without_a_timeout_outlives_a_restart_of_postgres(
    private_postgres: PrivatePostgres, *, crash: bool
) -> None:
    with fresh_database(private_postgres.url) as url, scene_on(url) as scene:
        one, many = new_id(), [new_id() for _ in range(3)]
        waiting = scene.waiting(lambda: scene.result(one).get())
        group = scene.waiting(lambda: ResultSet([scene.result(each) for each in many]).get())

        private_postgres.stop(crash=crash)
        eventually(lambda: any(wait.trouble for wait in scene.backend._poller._place.active.values()))
        private_postgres.start()
        scene.store_again(one, many)

        assert waiting.result(30) == one
        assert group.result(30) == many


def test_a_wait_with_a_timeout_ends_at_it_while_postgres_is_away_and_says_why(scene: Scene) -> None:
    leader = scene.waiting(lambda: scene.result().get(timeout=3))
    follower = scene.waiting(lambda: scene.result().get(timeout=2))
    clock = Stopwatch(scene)
    scene.proxy.refuse()

    for waiting in (follower, leader):
        ends_at_its_timeout(waiting)
        assert isinstance(waiting.exception().__cause__, StoreUnavailableError)
    assert clock.seconds < 8


def test_connections_cut_again_and_again_cost_a_wait_nothing_but_time(scene: Scene) -> None:
    task_id = new_id()
    waiting = scene.waiting(lambda: scene.result(task_id).get())
    for _ in range(10):
        before = scene.questions()
        scene.proxy.cut()
        eventually(lambda before=before: scene.questions() > before, what="the next question")
    scene.store(task_id, "at last")
    assert waiting.result(20) == "at last"


def test_an_answer_that_is_lost_is_asked_for_again(scene: Scene) -> None:
    task_id = new_id()
    scene.store(task_id, "there")
    fault = scene.proxy.lose_answer("results", "finished")
    assert scene.result(task_id).get() == "there"
    assert fault.met == 1


def test_a_network_that_swallows_everything_is_noticed_at_the_timeout(scene: Scene) -> None:
    waiting = scene.waiting(lambda: scene.result().get(timeout=1.5))
    clock = Stopwatch(scene)
    scene.proxy.blackhole()
    ends_at_its_timeout(waiting)
    assert clock.seconds < 8  # and not when the kernel gives up: that takes half a minute


def test_a_child_of_a_fork_asks_by_itself_while_its_parent_waits(scene: Scene) -> None:
    """The thread that asks does not exist in the child, whose memory says that it asks."""
    early, late = new_id(), new_id()
    waiting = scene.waiting(lambda: scene.result(late).get(timeout=60))
    eventually(lambda: scene.backend._poller._place.leader)
    begun, begin = os.pipe()

    def in_child() -> bool:
        # Celery calls it once, after the first question.
        return scene.result(early).get(timeout=20, on_interval=lambda: os.write(begin, b"!")) == "early"

    with forked(in_child):
        os.read(begun, 1)  # it has asked in vain and goes on waiting
        scene.store(early, "early")
    scene.store(late, "late")
    assert waiting.result(20) == "late"


def test_many_children_of_a_fork_wait_at_once(scene: Scene) -> None:
    _ = scene.result().state
    ids = [new_id() for _ in range(4)]
    children = [forked(lambda one=one: scene.result(one).get(timeout=30) == one) for one in ids]
    for child in children:
        child.__enter__()
    take(0.2)
    scene.store_all(ids)
    for child in children:
        child.__exit__(None, None, None)


def test_greenlets_wait_as_threads_do_and_keep_promises_by_themselves(scene: Scene) -> None:
    pytest.importorskip("gevent")
    questions = Stopwatch(scene)
    done = subprocess.run(
        [sys.executable, str(GEVENT), scene.proxy.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=GEVENT.parent.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["joined", "kept", "idle"]
    assert questions.questions > 0


def test_a_wait_beyond_the_outage_budget_is_an_error(postgres_url: str) -> None:
    with fresh_database(postgres_url) as url, scene_on(url, durable_outage_budget=0.5) as scene:
        waiting = scene.waiting(lambda: scene.result().get())
        scene.proxy.refuse()
        with pytest.raises(StoreUnavailableError):
            waiting.result(20)
        with pytest.raises(ResultTimeoutError):
            scene.result().get(timeout=0.1)
