"""The fixtures for users' tests: runs executed in the test itself, by the real store's rules."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, chain, chord, group
from celery.exceptions import TaskRevokedError

import celery_durable as durable
from celery_durable import hooks
from celery_durable.operations import Filter, Runs
from celery_durable.testing import StuckError, pointed

if TYPE_CHECKING:
    from celery_durable.store import Store
    from celery_durable.testing import Player


@durable.step
def doubled(number: int) -> int:
    return number * 2


@pytest.fixture
def double(durable_app: Celery) -> Any:
    @durable_app.task(name="played.double", shared=False)
    def double(number: int) -> int:
        return doubled(number)

    return double


def test_a_player_returns_what_the_task_returns_and_leaves_a_history(
    durable_player: Player, durable_app: Celery, double: Any
) -> None:
    assert durable_player.run(double.s(4)) == 8

    (run,) = Runs(durable_app).list().runs
    history = Runs(durable_app).get(run.id)
    assert run.state == "succeeded"
    assert [step.key for step in history.steps] == ["doubled"]


def test_a_player_raises_what_the_task_raises(durable_player: Player, durable_app: Celery) -> None:
    @durable_app.task(name="played.fails", shared=False, throws=(KeyError,))
    def fails() -> None:
        raise KeyError("no such order")

    with pytest.raises(KeyError, match="no such order"):
        durable_player.run(fails.s())


def test_a_player_turns_the_clock_instead_of_waiting(durable_player: Player, durable_app: Celery) -> None:
    attempts = []

    @durable_app.task(name="played.patient", shared=False, bind=True, default_retry_delay=3600)
    def patient(self: Any) -> float:
        began = durable.now()
        durable.sleep(hours=12)
        attempts.append(durable.current_run().attempt)
        if len(attempts) == 1:
            raise self.retry(exc=ConnectionError("not yet"))
        return (durable.now() - began).total_seconds() / 3600

    assert 13 <= durable_player.run(patient.s()) < 13.1
    assert attempts == [2, 3]


def test_what_a_run_waits_for_is_brought_by_the_test(durable_player: Player, durable_app: Celery) -> None:
    @durable_app.task(name="played.approval", shared=False)
    def approval() -> Any:
        return durable.wait_for_signal("approved")

    with pytest.raises(StuckError, match=r"played.approval\[.*\] is waiting, for signal\..*when_waiting="):
        durable_player.run(approval.s())

    def approve(run_id: str) -> None:
        durable.send_signal(run_id, "approved", "by ada", app=durable_app)

    durable_player.play(when_waiting=approve)
    assert durable_player.run(approval.s(), when_waiting=approve) == "by ada"


def test_a_signal_with_a_timeout_is_asked_for_before_the_clock_is_turned(
    durable_player: Player, durable_app: Celery
) -> None:
    @durable_app.task(name="played.deadline", shared=False)
    def deadline() -> Any:
        try:
            return durable.wait_for_signal("approved", timeout=3600)
        except durable.SignalTimeout:
            return "too late"

    asked: list[str] = []

    def approve(run_id: str) -> None:
        durable.send_signal(run_id, "approved", "by ada", app=durable_app)

    assert durable_player.run(deadline.s(), when_waiting=approve) == "by ada"
    assert durable_player.run(deadline.s(), when_waiting=asked.append) == "too late"
    assert len(asked) == 1


@pytest.mark.parametrize("deadline", [3600, timedelta(hours=1)])
def test_a_run_is_cancelled_at_its_deadline_which_time_brings(
    durable_player: Player, durable_app: Celery, double: Any, deadline: Any
) -> None:
    @durable_app.task(name="played.overslept", shared=False)
    def overslept() -> None:
        durable.sleep(days=2)

    @durable_app.task(name="played.parent", shared=False)
    def parent() -> str:
        began = durable.now()
        with pytest.raises(TaskRevokedError):
            durable.call(overslept.s().set(deadline=deadline))
        assert 3600 <= (durable.now() - began).total_seconds() < 3700
        durable.sleep(days=1)
        return "went on"

    with pytest.raises(TaskRevokedError, match="deadline"):
        durable_player.run(overslept.s().set(deadline=deadline))
    assert durable_player.run(parent.s()) == "went on"
    with pytest.raises(TaskRevokedError, match="deadline"):
        durable_player.run(chord([double.s(1), overslept.s().set(deadline=deadline)], double.s()))
    assert [(run.state, run.reason) for run in Runs(durable_app).list(task="played.overslept").runs] == [
        ("cancelled", "deadline")
    ] * 3


def test_what_is_done_before_its_deadline_is_not_cancelled(
    durable_player: Player, durable_app: Celery
) -> None:
    @durable_app.task(name="played.in.time", shared=False, deadline=3600)
    def in_time() -> str:
        durable.sleep(minutes=30)
        with pytest.raises(durable.SignalTimeout):
            durable.wait_for_signal("late", timeout=60)
        return "in time"

    assert durable_player.run(in_time.s()) == "in time"


def test_a_wait_for_a_start_that_a_rate_allows_costs_no_time(
    durable_player: Player, durable_app: Celery
) -> None:
    @durable_app.task(name="played.slow", shared=False, start_rate="1/m")
    def slow(number: int) -> float:
        return durable.now().timestamp()

    @durable_app.task(name="played.all", shared=False)
    def all_of_them() -> Any:
        return durable.map(slow, [1, 2, 3])

    began = durable_player.run(all_of_them.s())
    assert 60 <= began[1] - began[0] < 70
    assert 60 <= began[2] - began[1] < 70


def test_canvas_and_plain_tasks_are_executed_too(
    durable_player: Player, durable_app: Celery, double: Any
) -> None:
    @durable_app.task(name="played.total", shared=False, base=Task)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    assert durable_player.run(chain(double.s(1), double.s(), double.s())) == 8
    assert durable_player.run(group(double.s(1), double.s(2))) == [2, 4]
    assert durable_player.run(chord([double.s(1), double.s(2)], double.s() | total.si([5, 6]))) == 11
    assert durable_player.run(double.s(1) | total.si([1, 2]) | double.s()) == 6


def test_a_player_leaves_the_process_as_it_found_it(durable_player: Player, double: Any) -> None:
    before = dict(os.environ)
    durable_player.run(double.s(1))

    assert dict(os.environ) == before
    assert not hooks.draining()


def test_a_task_that_the_app_does_not_know_is_named(
    durable_player: Player, durable_app: Celery, double: Any
) -> None:
    double.delay(1)
    del durable_app.tasks["played.double"]

    with pytest.raises(StuckError, match=r"no task 'played\.double'"):
        durable_player.play()


def test_a_plain_child_is_executed_and_one_that_the_app_does_not_know_is_named(
    durable_player: Player, durable_app: Celery
) -> None:
    @durable_app.task(name="played.plain", base=Task, shared=False)
    def ordinary(number: int) -> int:
        return -number

    @durable_app.task(name="played.parent", shared=False)
    def parent(name: str) -> Any:
        return durable.call(durable_app.signature(name, (4,)))

    assert durable_player.run(parent.s("played.plain")) == -4
    with pytest.raises(StuckError, match=r"no task 'played\.planned'"):
        durable_player.run(parent.s("played.planned"))


@pytest.mark.parametrize("number", [1, 2])
def test_every_test_begins_with_an_empty_store(durable_store: Store, double: Any, number: int) -> None:
    double.delay(number)

    assert len(durable_store.inspection.list(Filter()).runs) == 1


def test_an_app_is_pointed_elsewhere_and_back(
    durable_store: Store, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = "durable+postgresql://nowhere/x"
    app = Celery("mine", broker="redis://nowhere", backend=store, set_as_current=False)
    app.conf.task_always_eager = True
    mine = app.backend
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://everywhere")

    with pointed(app, backend=f"durable+{durable_store.url}", broker=f"durable+embedded://{tmp_path}"):
        assert app.backend is not mine
        assert app.connection_for_write().as_uri() == f"durable+embedded://{tmp_path}"
        assert app.backend.task_result_exists("x") is False
        assert not app.conf.task_always_eager

    assert app.backend.as_uri() == store
    assert app.conf.task_always_eager
    assert app.conf.broker_url == "redis://everywhere"


def test_a_worker_in_a_thread_takes_what_the_test_patches(
    durable_worker: Any, double: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubled, "function", lambda number: number * 3)
    durable_worker.reload()

    assert double.delay(4).get(timeout=20) == 12


def test_a_worker_is_gone_after_its_test(durable_store: Store, request: pytest.FixtureRequest) -> None:
    assert not hooks.draining()
    with durable_store.connections.dedicated() as connection:
        assert connection.execute("select count(*) as n from durable.worker").fetchone() == {"n": 0}


def test_a_player_and_a_worker_do_not_mix(durable_worker: Any, request: pytest.FixtureRequest) -> None:
    with pytest.raises(pytest.UsageError, match="use one of them"):
        request.getfixturevalue("durable_player")
