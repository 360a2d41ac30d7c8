"""Deadlines, and what a cancelled parent takes with it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from contending import background, keeper, move_clock, wait_until_blocked
from delivering import World, delivering
from inspecting import execute, open_transaction

import celery_durable as durable
from celery_durable import plain
from celery_durable.executor import journal
from celery_durable.keeper import services
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

HOUR = timedelta(hours=1)
done: list[Any] = []


@durable.step
def work(name: str) -> str:
    done.append(name)
    return name


def idle(number: int) -> None:
    durable.wait_for_signal("never")


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        plain.register(made.app)
        yield made


def serve(world: World) -> dict[str, int]:
    """Let the keeper do what is due."""
    with keeper(world.store) as statements:
        return {
            "overdue": services.enforce_deadlines(statements),
            "cascaded": services.cascade(statements),
            "woken": services.wake_parents(world.app, statements, 0)[0],
        }


def later(world: World, offset: str) -> None:
    move_clock(world.store, offset)
    world.app.backend.store.close()


def states(world: World) -> list[tuple[str, str | None]]:
    rows = execute(world.store, "select state, reason from durable.run order by key")
    return [(row["state"], row["reason"]) for row in rows]


def family(world: World, **options: Any) -> str:
    """Return a parent that waits for two children, of which one waits itself."""
    task = world.task(idle)

    def parent() -> None:
        durable.map(task, range(2), **options)

    run_id = world.run(world.task(parent))
    (first,) = execute(world.store, "select id from durable.run where wait is not null order by key limit 1")
    world.deliver(first["id"])
    assert states(world) == [("waiting", "children"), ("waiting", "signal"), ("pending", None)]
    return run_id


def test_the_children_of_a_cancelled_parent_are_cancelled_with_it(world: World) -> None:
    Runs(world.app).cancel(family(world))

    assert serve(world)["cascaded"] == 2
    assert states(world) == [("cancelled", "cancelled"), ("cancelled", "parent"), ("cancelled", "parent")]
    assert serve(world) == {"overdue": 0, "cascaded": 0, "woken": 0}
    assert execute(world.store, "select key from durable.run where cascading") == []


def test_detached_children_go_on(world: World) -> None:
    Runs(world.app).cancel(family(world, detached=True))

    serve(world)

    assert states(world) == [("cancelled", "cancelled"), ("waiting", "signal"), ("pending", None)]


def test_children_of_children_go_too(world: World) -> None:
    leaf = world.task(idle)

    def middle() -> None:
        durable.call(leaf.s(1))

    between = world.task(middle)

    def top() -> None:
        durable.call(between.s())

    run_id = world.run(world.task(top))
    for _ in range(2):
        (row,) = execute(world.store, "select id from durable.run where state = 'pending'")
        world.deliver(row["id"])
    Runs(world.app).cancel(run_id)

    assert serve(world)["cascaded"] == 2
    assert [state for state, _ in states(world)] == ["cancelled"] * 3


def test_a_revoked_parent_takes_its_children_with_it(world: World) -> None:
    run_id = family(world)
    world.store.runs.revoke(run_id, token=None, terminated=False)

    serve(world)

    assert states(world)[1:] == [("cancelled", "parent")] * 2


def undo(name: str) -> None:
    done.append(f"undo {name}")


def booked(number: int) -> None:
    work("booked")
    durable.on_rollback(undo, "booked")
    durable.wait_for_signal("never")


def test_a_child_that_takes_back_what_it_has_done_is_cancelled_once(world: World) -> None:
    """The keeper does not wait for it: a worker has to do that, perhaps much later."""
    task = world.task(booked)

    def parent() -> None:
        durable.call(task.s(1))

    run_id = world.run(world.task(parent))
    (child,) = execute(world.store, "select id from durable.run where wait is not null")
    world.deliver(child["id"])
    Runs(world.app).cancel(run_id)
    with keeper(world.store) as statements:
        assert statements.cascade(10, reason="its parent was cancelled") == 1
        assert statements.cascade(10, reason="its parent was cancelled") == 0

    told = "select r.id from durable.run r join durable.event e on e.run_key = r.key"
    assert execute(world.store, f"{told} where e.detail ->> 'reason' = %s", "its parent was cancelled") == [
        {"id": child["id"]}
    ]
    assert execute(world.store, "select key from durable.run where cascading") == []
    assert states(world) == [("cancelled", "cancelled"), ("pending", None)]
    world.deliver(child["id"])
    assert states(world)[1] == ("cancelled", "parent")
    assert done == ["booked", "undo booked"]


def test_a_parent_that_is_resumed_before_the_keeper_looks_keeps_its_children(world: World) -> None:
    """All workers may have been down when it was cancelled, and resumed."""
    run_id = family(world)
    Runs(world.app).cancel(run_id)
    Runs(world.app).resume(run_id)
    world.deliver(run_id)
    assert states(world)[0] == ("waiting", "children")

    serve(world)

    assert states(world)[1:] == [("waiting", "signal"), ("pending", None)]


def test_a_resumed_parent_that_is_cancelled_before_it_waits_again_takes_its_children_with_it(
    world: World,
) -> None:
    run_id = family(world)
    Runs(world.app).cancel(run_id)
    Runs(world.app).resume(run_id)
    Runs(world.app).cancel(run_id)

    serve(world)

    assert states(world) == [("cancelled", "cancelled"), ("cancelled", "parent"), ("cancelled", "parent")]


def test_a_parent_that_is_resumed_while_the_keeper_tells_its_children_keeps_those_it_has_not_told(
    world: World, store: Store
) -> None:
    run_id = family(world)
    Runs(world.app).cancel(run_id)
    with keeper(store) as statements:
        found = statements._all("forsaken", limit=10, ids=None)
        assert len(found) == 2
        Runs(world.app).resume(run_id)
        statements._all = lambda name, _real=statements._all, **given: (  # type: ignore[method-assign]
            found if given.get("ids", ()) is None else _real(name, **given)
        )
        statements.cascade(10, reason="its parent was cancelled")

    assert states(world)[1:] == [("waiting", "signal"), ("pending", None)]


def test_a_child_that_is_executing_is_asked_to_stop(world: World) -> None:
    task = world.task(idle)
    told: list[str] = []

    def child() -> None:
        Runs(world.app).cancel(run_id)
        serve(world)
        work("the news come with this one")
        try:
            work("never")
        except durable.RunCancelled:
            told.append("told")
            raise

    child_task = world.task(child)

    def parent() -> None:
        durable.gather(child_task.s(), task.s(1))

    run_id = world.run(world.task(parent))
    (first, _) = execute(world.store, "select id from durable.run where wait is not null order by key")
    world.deliver(first["id"])

    assert told == ["told"]
    assert states(world) == [("cancelled", "cancelled"), ("cancelled", "parent"), ("cancelled", "parent")]


def test_a_cancel_that_meets_a_parent_on_its_way_to_wait_finds_the_children_it_has_just_started(
    world: World, store: Store
) -> None:
    """They were not there when the cancel began."""
    task = world.task(idle)
    with open_transaction(store) as other:

        def parent() -> None:
            other.execute("lock table durable.attempt in exclusive mode")  # where a wait notes that it leaves
            durable.call(task.s(1))

        run_id = world.task(parent).delay().id
        delivery = background(lambda: world.deliver(run_id))
        wait_until_blocked(store)
        cancel = background(lambda: Runs(world.app).cancel(run_id))
        wait_until_blocked(store, 2)
    delivery.result(20)
    cancel.result(20)
    assert states(world)[0] == ("cancelled", "cancelled")

    serve(world)

    assert states(world)[1] == ("cancelled", "parent")


def sleepy() -> str:
    durable.sleep(days=3)
    return "rested"


@pytest.mark.parametrize(
    "deadline", [3600, HOUR, datetime(2100, 1, 1, tzinfo=timezone.utc)], ids=["seconds", "span", "moment"]
)
def test_a_run_that_waits_past_its_deadline_is_cancelled(world: World, deadline: Any) -> None:
    run_id = world.run(world.task(sleepy), deadline=deadline)
    assert serve(world)["overdue"] == 0
    later(world, "59 minutes" if not isinstance(deadline, datetime) else "1 day")
    assert serve(world)["overdue"] == 0
    later(world, "61 minutes" if not isinstance(deadline, datetime) else "100 years")

    assert serve(world)["overdue"] == 1
    assert world.state(run_id) == ("cancelled", "deadline")
    assert world.app.AsyncResult(run_id).state == "REVOKED"
    assert serve(world)["overdue"] == 0


def test_a_run_whose_deadline_has_passed_when_it_is_claimed_does_not_begin(world: World) -> None:
    """The keeper has not looked yet."""

    def body() -> None:
        done.append("begun")

    assert world.state(world.run(world.task(body), deadline=-5)) == ("cancelled", "deadline")
    assert done == []


def test_nor_does_it_go_on_when_it_is_claimed_again(world: World) -> None:
    def body() -> str:
        work("one")
        durable.sleep(3600)
        return work("two")

    run_id = world.run(world.task(body), deadline=5400)
    later(world, "2 hours")
    with keeper(world.store) as statements:
        statements.wake(10)
    world.app.backend.store.close()
    world.deliver(run_id)
    assert world.state(run_id) == ("cancelled", "deadline")
    assert done == ["one"]


def test_a_run_that_takes_back_what_it_has_done_is_over_its_deadline_once(world: World) -> None:
    """Again and again would be a message each time, while the workers are busy."""
    task = world.task(booked)
    run_id = task.apply_async((1,), deadline=HOUR).id
    world.deliver(run_id)
    later(world, "2 hours")

    assert serve(world)["overdue"] == 1
    with keeper(world.store) as statements:
        assert [stored.id for stored in statements.publishable(10)] == [run_id]
        term = statements.lead(world.token, HOUR).term or 0
        assert not statements.look(term).overdue
    assert serve(world)["overdue"] == 0
    with keeper(world.store) as statements:
        assert statements.publishable(10) == []
    world.deliver(run_id)
    assert states(world) == [("cancelled", "deadline")]
    assert done == ["booked", "undo booked"]


def test_a_run_stored_in_a_transaction_of_the_callers_has_its_deadline_as_well(world: World) -> None:
    task = world.task(idle)
    moment = datetime(2100, 1, 1, tzinfo=timezone.utc)

    with world.store.connections.dedicated() as connection, connection.transaction():
        task.apply_async((1,), transaction=connection, deadline=HOUR)
        task.apply_async((2,), transaction=connection, deadline=moment)
        task.apply_async((3,), transaction=connection)

    rows = execute(
        world.store, "select deadline - created_at as left_over, deadline from durable.run order by key"
    )
    assert abs(rows[0]["left_over"] - HOUR) < timedelta(seconds=5)
    assert [row["deadline"] for row in rows[1:]] == [moment, None]


@pytest.mark.parametrize("option", ["deadline", "expires", "eta", "countdown"])
@pytest.mark.parametrize("value", ["x", ["x"], float("inf")])
def test_a_time_that_cannot_be_meant_is_refused_by_its_name(world: World, option: str, value: Any) -> None:
    task = world.task(idle)

    with pytest.raises(durable.ConfigurationError, match=f"{option}="):
        task.apply_async((1,), **{option: value})


def test_a_tasks_own_deadline_holds_unless_its_caller_says_another(world: World) -> None:
    task = world.task(sleepy, deadline=60)
    own, callers = world.run(task), world.run(task, deadline=HOUR)
    later(world, "2 minutes")

    serve(world)

    assert world.state(own) == ("cancelled", "deadline")
    assert world.state(callers) == ("waiting", "sleep")


def test_a_deadline_that_is_a_bool_is_refused(world: World) -> None:
    with pytest.raises(durable.ConfigurationError, match="deadline=True is no number"):
        world.task(sleepy).apply_async(deadline=True)


def test_a_run_that_is_executing_at_its_deadline_is_told_and_may_clean_up(world: World) -> None:
    seen: list[Any] = []

    def body() -> None:
        seen.append(durable.current_run().deadline)
        work("before")
        later(world, "2 hours")
        serve(world)
        try:
            work("brings the news")
            work("never")
        except durable.RunCancelled:
            work("cleaning up")
            raise

    run_id = world.run(world.task(body), deadline=HOUR)

    assert done == ["before", "brings the news", "cleaning up"]
    assert world.state(run_id)[0] == "cancelled"
    assert seen[0] > datetime(2020, 1, 1, tzinfo=timezone.utc)


def test_a_step_that_begins_long_after_the_last_write_asks_first_whether_it_may(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def body() -> None:
        work("before")
        Runs(world.app).cancel(durable.current_run().id)
        monkeypatch.setattr(journal, "_A_WHILE", 0.0)
        try:
            work("never")
        except durable.RunCancelled:
            work("cleaning up")
            raise

    run_id = world.run(world.task(body))

    assert done == ["before", "cleaning up"]
    assert world.state(run_id) == ("cancelled", "cancelled")


def test_a_step_of_an_attempt_that_was_superseded_long_ago_does_not_begin(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_A_WHILE", 0.0)

    def body() -> None:
        execute(world.store, "update durable.run set fence = gen_random_uuid()")
        work("never")

    world.run(world.task(body))

    assert done == []


def test_a_run_that_is_over_in_time_is_not_touched_and_one_without_a_deadline_never(world: World) -> None:
    quick = world.run(world.task(idle_no_more), deadline=HOUR)
    slow = world.run(world.task(sleepy))
    later(world, "2 days")

    assert serve(world)["overdue"] == 0
    assert (world.state(quick)[0], world.state(slow)[0]) == ("succeeded", "waiting")


def idle_no_more() -> int:
    return 1


def test_a_run_that_was_resumed_has_no_deadline_any_more(world: World) -> None:
    run_id = world.run(world.task(sleepy), deadline=60)
    later(world, "2 minutes")
    serve(world)
    Runs(world.app).resume(run_id)
    world.deliver(run_id)

    assert serve(world)["overdue"] == 0
    assert world.state(run_id) == ("waiting", "sleep")


def test_a_child_has_the_deadline_of_its_signature(world: World) -> None:
    task = world.task(sleepy)
    caught: list[Any] = []

    def parent() -> str:
        try:
            return str(durable.call(task.s().set(deadline=60)))
        except Exception as error:  # noqa: BLE001
            caught.append(str(error))
            return "too late"

    run_id = world.run(world.task(parent))
    later(world, "2 minutes")
    serve(world)
    serve(world)
    world.deliver(run_id)

    assert world.result(run_id) == "too late"
    assert caught == ["deadline"]
