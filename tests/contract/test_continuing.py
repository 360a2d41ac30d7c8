"""`continue_as`: the same run, begun anew with other arguments and nothing of its history."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain
from delivering import World, delivering
from inspecting import execute
from kombu.exceptions import EncodeError

import celery_durable as durable
from celery_durable import plain
from celery_durable.exceptions import DurableError, NondeterminismError
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

done: list[Any] = []


@durable.step
def work(name: Any) -> Any:
    done.append(name)
    return name


def countdown(number: int, seen: list[Any] | None = None) -> list[Any]:
    seen = [*(seen or []), work(number)]
    if number:
        durable.continue_as(number - 1, seen=seen)
    return seen


def double(values: list[Any]) -> list[Any]:
    return [2 * value for value in values]


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        plain.register(made.app)
        yield made


def drain(world: World) -> None:
    sql = "select id from durable.run where state = 'pending' order by key"
    while found := execute(world.store, sql):
        for row in found:
            world.deliver(row["id"])


def test_a_run_begins_anew_under_its_id_with_other_arguments_and_a_fresh_history(world: World) -> None:
    run_id = world.run(world.task(countdown), 3)
    assert world.state(run_id) == ("pending", None)
    drain(world)

    assert world.result(run_id) == [3, 2, 1, 0]
    assert done == [3, 2, 1, 0]
    assert list(world.steps(run_id)) == ["work"], "of the last one alone"
    rows = execute(world.store, "select outcome from durable.attempt order by number")
    assert [row["outcome"] for row in rows] == ["replaced"] * 3 + ["succeeded"]


def test_its_chain_waits_for_the_last(world: World) -> None:
    first, then = world.task(countdown), world.task(double)
    result = chain(first.s(2), then.s()).apply_async()
    drain(world)

    assert world.result(result.id) == [4, 2, 0]


def test_a_parent_waits_for_the_last(world: World) -> None:
    task = world.task(countdown)

    def parent() -> Any:
        return durable.call(task.s(2))

    run_id = world.run(world.task(parent))
    drain(world)

    assert world.result(run_id) == [2, 1, 0]


def test_its_children_are_new_ones(world: World) -> None:
    task = world.task(double)

    def body(left: int) -> Any:
        result = durable.call(task.s([left]))
        if left:
            durable.continue_as(left - 1)
        return result

    run_id = world.run(world.task(body), 2)
    drain(world)

    assert world.result(run_id) == [0]
    assert execute(world.store, "select count(*) as n from durable.run where wait is not null") == [{"n": 3}]


def test_signals_that_nobody_has_received_are_kept_and_those_received_are_not_received_again(
    world: World,
) -> None:
    def body(seen: list[Any]) -> list[Any]:
        seen = [*seen, durable.wait_for_signal("more")]
        if len(seen) < 3:
            durable.continue_as(seen)
        return seen

    run_id = world.task(body).delay([]).id
    for number in range(3):
        durable.send_signal(run_id, "more", number, app=world.app)
    drain(world)

    assert world.result(run_id) == [0, 1, 2]


def test_chance_and_time_are_drawn_anew(world: World) -> None:
    drawn: list[Any] = []

    def body(left: int) -> None:
        drawn.append((durable.uuid4(), durable.now(), durable.random().random()))
        if left:
            durable.continue_as(left - 1)

    world.run(world.task(body), 1)
    drain(world)

    assert all(first != second for first, second in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("args", "error"), [((1, 2, 3), TypeError), ((object(),), EncodeError)], ids=["do not fit", "no JSON"]
)
def test_arguments_that_cannot_be_sent_end_the_run_with_their_error(
    world: World, args: tuple[Any, ...], error: type[Exception]
) -> None:
    def body(left: int) -> None:
        if left:
            durable.continue_as(*args)

    run_id = world.run(world.task(body), 1)

    assert world.state(run_id)[0] == "failed"
    assert isinstance(world.result(run_id), error)


def test_a_run_that_was_asked_to_stop_does_not_continue(world: World) -> None:
    def body(left: int) -> None:
        Runs(world.app).cancel(durable.current_run().id)
        durable.continue_as(left - 1)

    run_id = world.run(world.task(body), 1)
    drain(world)

    assert world.state(run_id) == ("cancelled", "cancelled")


def test_a_superseded_attempt_does_not_continue_its_run(world: World, store: Store) -> None:
    def body(left: int) -> None:
        if left:
            execute(store, "update durable.run set fence = %s", uuid.uuid4())
            durable.continue_as(left - 1)

    run_id = world.run(world.task(body), 1)

    assert world.state(run_id) == ("running", None)
    assert execute(store, "select replacements from durable.run") == [{"replacements": 0}]


def test_a_body_that_catches_everything_continues_all_the_same(world: World) -> None:
    def body(left: int) -> str:
        with suppress(BaseException):
            if left:
                durable.continue_as(left - 1)
        work(left)
        return "over"

    run_id = world.run(world.task(body), 1)
    drain(world)

    assert world.result(run_id) == "over"
    assert done == [0]


def test_steps_that_were_stored_have_to_be_met_first(world: World) -> None:
    tries: list[int] = []

    def body(left: int) -> None:
        tries.append(1)
        if len(tries) == 1:
            work("before")
            raise ConnectionError
        durable.continue_as(left - 1)

    run_id = world.run(world.task(body, retry_backoff=False, default_retry_delay=0), 1)
    drain(world)

    assert isinstance(world.result(run_id), NondeterminismError)


def test_in_a_step_or_outside_a_run_there_is_nothing_to_continue(world: World) -> None:
    @durable.step
    def inside() -> None:
        durable.continue_as(1)

    run_id = world.run(world.task(inside_of(inside)))

    assert "continue_as is called in the step 'inside'" in str(world.result(run_id))
    with pytest.raises(DurableError, match="outside a run"):
        durable.continue_as()


def inside_of(step: Any) -> Any:
    def body() -> None:
        step()

    return body


def test_thirty_rounds_leave_no_history_behind(world: World) -> None:
    def body(left: int) -> int:
        work("a")
        if left:
            durable.continue_as(left - 1)
        return left

    run_id = world.run(world.task(body), 30)
    drain(world)

    assert world.state(run_id)[0] == "succeeded"
    assert execute(world.store, "select count(*) as n from durable.checkpoint") == [{"n": 1}]
