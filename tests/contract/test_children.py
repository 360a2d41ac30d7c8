"""Children: started with their parent's wait, over before it goes on, and their ends told once."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, chain, group
from celery.exceptions import TaskRevokedError
from contending import background, keeper, move_clock, wait_until_blocked
from delivering import World, delivering, drain, pending
from harness.waiting import eventually
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from inspecting import execute, open_transaction

import celery_durable as durable
from celery_durable import plain
from celery_durable.exceptions import NondeterminismError, StepUsageError
from celery_durable.keeper import services
from celery_durable.operations import Runs
from celery_durable.operations.wording import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

done: list[Any] = []


@durable.step
def work(name: str) -> str:
    done.append(name)
    return f"{name} done"


def double(number: int) -> int:
    done.append(number)
    return 2 * number


def fails(text: str) -> None:
    raise durable.Fatal(text)


class Declined(Exception):  # noqa: N818
    """An error whose constructor takes other arguments than it hands on."""

    def __init__(self, code: int, *, cents: int) -> None:
        super().__init__(f"declined: {code}")
        self.code, self.cents = code, cents


def declines(code: int) -> None:
    raise Declined(code, cents=5)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        plain.register(made.app)
        yield made


def parent_of(world: World, body: Callable[[], Any], **options: Any) -> Any:
    body.__name__ = "parent"  # Celery makes a function of this name of it
    return world.task(body, **options)


def finished(world: World, body: Callable[[], Any], **options: Any) -> Any:
    """Run a parent and all its children; return its result."""
    run_id = world.run(parent_of(world, body, **options))
    drain(world)
    return world.result(run_id)


def children(world: World, *columns: str) -> list[tuple[Any, ...]]:
    rows = execute(
        world.store,
        f"select {', '.join(columns)} from durable.run where wait is not null order by key",
    )
    return [tuple(row.values()) for row in rows]


def test_the_error_of_a_child_is_of_its_class_in_its_parent_and_for_its_caller(world: World) -> None:
    child = world.task(declines, max_retries=0)

    def body() -> list[Any]:
        try:
            durable.call(child.s(1))
        except Declined as error:
            caught = (error.code, error.cents)
        others = durable.gather(child.s(2), child.s(3), return_exceptions=True)
        return [*caught, *((one.code, str(one)) for one in others)]

    assert finished(world, body) == [1, 5, [2, "declined: 2"], [3, "declined: 3"]]
    told = world.result(world.run(child, 4))
    assert (type(told), told.cents) == (Declined, 5)


def come_back(world: World, run_id: str) -> None:
    """Wake a run before its time."""
    sql = "update durable.run set state = 'pending', reason = null, due = now() where id = %s"
    execute(world.store, sql, run_id)


def sweep(world: World) -> int:
    with keeper(world.store) as statements:
        return services.wake_parents(world.app, statements, 0)[0]


# -- results ----------------------------------------------------------------------------------------------


def test_a_parent_gets_the_results_in_the_order_of_its_calls_and_holds_no_worker(world: World) -> None:
    task = world.task(double)

    def parent() -> Any:
        return [work("before"), durable.gather(*(task.s(number) for number in range(3))), work("after")]

    run_id = world.run(parent_of(world, parent))

    assert world.state(run_id) == ("waiting", "children")
    assert world.app.AsyncResult(run_id).state == "SUSPENDED"
    for child_id in reversed(pending(world)):
        assert world.state(run_id)[0] == "waiting"
        world.deliver(child_id)
    assert pending(world) == [run_id], "woken by the last of them"
    drain(world)
    assert world.result(run_id) == ["before done", [0, 2, 4], "after done"]
    assert done == ["before", 2, 1, 0, "after"]


def test_call_and_map_are_the_same_for_one_task(world: World) -> None:
    task = world.task(double)

    def parent() -> Any:
        return [durable.call(task.s(20)), durable.map(task, [1, 2]), durable.gather(), durable.map(task, [])]

    assert finished(world, parent) == [40, [2, 4], [], []]
    (first,) = execute(world.store, "select id from durable.run order by key limit 1")
    assert list(world.steps(first["id"])) == [f"call:{task.name}", f"map:{task.name}"]


def test_children_know_their_parent_and_are_known_by_it_again_at_a_replay(world: World) -> None:
    task = world.task(double)

    def parent() -> Any:
        return durable.call(task.s(1))

    run_id = world.run(parent_of(world, parent))
    ((child_id, of, root),) = children(world, "id", "parent", "root")
    assert (of, root) == (run_id, run_id)
    for _ in range(3):  # woken by nobody knows whom
        come_back(world, run_id)
        world.deliver(run_id)
        assert world.state(run_id) == ("waiting", "children")
    assert children(world, "id") == [(child_id,)]
    drain(world)
    assert world.result(run_id) == 2
    assert done == [1]


def test_the_first_error_in_the_order_of_the_calls_is_raised_when_all_are_over(world: World) -> None:
    good, bad = world.task(double), world.task(fails)

    def parent() -> Any:
        try:
            return durable.gather(good.s(1), bad.s("first"), bad.s("second"), good.s(2))
        except durable.Fatal as error:
            return f"caught {error}"

    assert finished(world, parent) == "caught first"
    assert done == [1, 2]


def test_errors_are_among_the_results_if_wanted(world: World) -> None:
    good, bad = world.task(double), world.task(fails)

    def parent() -> Any:
        results = durable.gather(good.s(1), bad.s("no"), return_exceptions=True)
        return [results[0], type(results[1]).__name__, str(results[1])]

    assert finished(world, parent) == [2, "Fatal", "no"]


def test_a_parent_that_lets_a_childs_error_pass_fails_of_it(world: World) -> None:
    bad = world.task(fails)

    result = finished(world, lambda: durable.call(bad.s("no")), autoretry_for=())

    assert (type(result), str(result)) == (durable.Fatal, "no")


def test_children_of_children(world: World) -> None:
    task = world.task(double)

    def middle(number: int) -> int:
        return sum(durable.map(task, range(number)))

    between = world.task(middle)

    assert finished(world, lambda: durable.map(between, [2, 3])) == [2, 6]


def test_what_is_no_signature_is_an_error_of_the_call(world: World) -> None:
    task = world.task(double)
    errors: list[str] = []

    def parent() -> None:
        wrong: list[Callable[[], Any]] = [
            lambda: durable.gather(task),
            lambda: durable.gather(task.s(1), work.s("x")),
            lambda: durable.map("double", [1]),
            lambda: durable.map(task, [1], max_concurrency=0),
            lambda: durable.map(task, [1], max_concurrency="many"),  # type: ignore[arg-type]
            lambda: durable.call("double"),
        ]
        for one in wrong:
            with pytest.raises(StepUsageError) as error:
                one()
            errors.append(str(error.value))

    finished(world, parent)
    assert len(errors) == 6
    assert "no signature" in errors[0]
    assert "no signature" in errors[-1]


def test_other_children_at_the_replay_are_nondeterminism(world: World) -> None:
    task = world.task(double)
    numbers = iter([1, 2, 3, 4, 5, 6])

    result = finished(world, lambda: durable.call(task.s(next(numbers))))

    assert isinstance(result, NondeterminismError)


def test_outside_a_run_tasks_and_steps_are_applied_here_and_now(world: World) -> None:
    task = world.task(double)

    assert durable.call(task.s(1)) == 2
    assert durable.gather(task.s(1), task.s(2)) == [2, 4]
    assert durable.gather(work.s("a"), work.s("b")) == ["a done", "b done"]


# -- any end of a child wakes -----------------------------------------------------------------------------


def waiting_for_one(world: World, child: Any) -> str:
    def parent() -> Any:
        try:
            return durable.call(child)
        except TaskRevokedError as error:
            return f"revoked: {error}"
        except durable.DurableError as error:
            return type(error).__name__

    run_id = world.run(parent_of(world, parent))
    assert world.state(run_id) == ("waiting", "children")
    return run_id


def only_child(world: World) -> str:
    ((child_id,),) = children(world, "id")
    return str(child_id)


def test_a_child_that_is_cancelled_wakes_its_parent(world: World) -> None:
    run_id = waiting_for_one(world, world.task(double).s(1))
    Runs(world.app).cancel(only_child(world))

    sweep(world)
    drain(world)

    assert world.result(run_id) == "revoked: cancelled"


def test_a_child_that_is_revoked_wakes_its_parent(world: World) -> None:
    run_id = waiting_for_one(world, world.task(double).s(1))
    world.store.runs.revoke(only_child(world), token=None, terminated=False)

    sweep(world)
    drain(world)

    assert world.result(run_id) == "revoked: revoked"


def test_a_child_that_expires_wakes_its_parent(world: World) -> None:
    run_id = waiting_for_one(world, world.task(double).s(1).set(expires=60))
    move_clock(world.store, "1 hour")
    with keeper(world.store) as statements:
        assert statements.expire(10) == [only_child(world)]

    sweep(world)
    world.app.backend.store.close()
    drain(world)

    assert world.result(run_id) == "revoked: expired"


def test_a_child_that_exhausts_its_recoveries_wakes_its_parent(world: World) -> None:
    run_id = waiting_for_one(world, world.task(double).s(1))
    child_id = only_child(world)
    result = world.app.backend.error_meta(durable.ExhaustedError())
    world.store.runs.claim(child_id, fence=uuid.uuid4(), token=world.token, pid=9, revision=0)
    row = world.store.runs.recover_child(
        child_id,
        token=world.token,
        pid=9,
        error="killed",
        max_recoveries=0,
        result=result,
        result_type="application/json",
        budget=1,
    )
    assert row is not None
    assert row["state"] == "failed"

    sweep(world)
    drain(world)

    assert world.result(run_id) == "ExhaustedError"


def test_a_child_that_is_asked_to_stop_while_it_waits_for_a_retry_wakes_its_parent(world: World) -> None:
    def retries(self: Task[..., Any]) -> None:
        Runs(world.app).cancel(self.request.id)
        raise self.retry(countdown=60)

    run_id = waiting_for_one(world, world.task(retries, bind=True).s())
    drain(world)

    assert world.result(run_id) == "revoked: cancelled"


def test_a_keeper_wakes_a_parent_whose_last_child_died_before_it_could(world: World) -> None:
    """The child's end has committed, the look at its parent has not."""
    run_id = waiting_for_one(world, world.task(double).s(1))
    backend: Any = world.app.backend
    backend.store.runs.waits.follow = lambda *_: []
    world.deliver(only_child(world))
    assert world.state(run_id) == ("waiting", "children")

    assert sweep(world) == 1
    assert sweep(world) == 0
    del backend.store.runs.waits.follow
    drain(world)

    assert world.result(run_id) == 2


def test_a_resumed_child_changes_nothing_for_a_parent_that_was_told(world: World) -> None:
    bad = world.task(fails)
    run_id = waiting_for_one(world, bad.s("no"))
    drain(world)
    assert world.result(run_id) == "Fatal"

    Runs(world.app).resume(only_child(world))
    drain(world)

    assert world.result(run_id) == "Fatal"
    assert world.state(run_id)[0] == "succeeded"


# -- plain tasks and canvas -------------------------------------------------------------------------------


def test_a_plain_task_is_executed_by_a_run_that_keeps_its_result(world: World) -> None:
    seen: list[Any] = []

    def ordinary(self: Task[..., Any], number: int, *, more: int = 0) -> int:
        seen.append((self.request.id, self.request.called_directly, self.name, self.request.retries))
        return number + more

    task = world.task(ordinary, base=Task, bind=True, ignore_result=True)

    assert finished(world, lambda: durable.call(task.s(1, more=2))) == 3
    assert seen == [(only_child(world), False, task.name, 0)]


def test_a_plain_task_retries_as_it_would_and_sends_no_message_for_it(world: World) -> None:
    tries: list[int] = []

    def stubborn(self: Task[..., Any]) -> str:
        tries.append(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=0, max_retries=5)
        return "at last"

    task = world.task(stubborn, base=Task, bind=True)

    assert finished(world, lambda: durable.call(task.s())) == "at last"
    assert tries == [0, 1, 2]


def test_a_plain_tasks_error_is_its_own_and_it_is_not_retried_by_default(world: World) -> None:
    def ordinary() -> None:
        done.append("ordinary")
        message = "no"
        raise ValueError(message)

    task = world.task(ordinary, base=Task)

    def parent() -> str:
        try:
            durable.call(task.s())
        except ValueError as error:
            return f"caught {error}"
        return "nothing"

    assert finished(world, parent) == "caught no"
    assert done == ["ordinary"]


def test_a_plain_task_that_this_worker_does_not_know_waits_for_one_that_does(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A deploy is under way: the parent has new code, the worker that gets the child has not."""
    task = world.task(double, base=Task, max_retries=0)
    parent = world.run(parent_of(world, lambda: durable.call(task.s(1))))
    child = only_child(world)
    world.app.tasks.unregister(task.name)
    waited = []

    for _ in range(7):
        world.deliver(child)
        assert (world.state(child), world.state(parent)[0]) == (("waiting", "retry"), "waiting")
        (row,) = execute(
            world.store,
            "select round(extract(epoch from r.due - a.ended_at))::integer as seconds, r.retries"
            " from durable.run r join durable.attempt a on a.run_key = r.key and a.number = r.attempt"
            " where r.id = %s",
            child,
        )
        waited.append(row["seconds"])
        assert f"NotRegistered: {task.name!r}" in summary(Runs(world.app).get(child))
        come_back(world, child)

    assert (waited, row["retries"]) == ([2, 4, 8, 16, 32, 60, 60], 0)
    assert f"durable cancel {child}" in caplog.text
    world.app.tasks.register(task)
    drain(world)
    assert (done, world.result(parent)) == ([1], 2)


def test_a_plain_task_goes_to_its_own_queue(world: World) -> None:
    task, elsewhere = (world.task(double, base=Task) for _ in range(2))
    world.app.conf.task_routes = {task.name: {"queue": "slow", "priority": 7}}

    run_id = world.run(
        parent_of(world, lambda: durable.gather(task.s(1), elsewhere.s(2).set(queue="chosen")))
    )

    assert children(world, "queue", "priority") == [("slow", 7), ("chosen", None)]
    assert world.state(run_id)[0] == "waiting"


def test_a_chain_is_a_child_like_any_other(world: World) -> None:
    task = world.task(double)

    assert finished(world, lambda: durable.call(chain(task.s(1), task.s(), task.s()))) == 8


# -- many -------------------------------------------------------------------------------------------------


def test_two_thousand_children_are_stored_in_few_statements_and_wake_their_parent_once(
    world: World, store: Store
) -> None:
    task = world.task(double)
    run_id = world.run(parent_of(world, lambda: sum(durable.map(task, range(2000)))))

    published = execute(
        store, "select count(*) as n from durable.run where wait is not null and published_at is null"
    )
    assert published == [{"n": 1500}], "the keeper sends what is behind the first five hundred"
    execute(
        store,
        "update durable.run set state = 'succeeded', due = null, finished_at = now(), result = '1',"
        " result_type = 'application/json'"
        " where wait is not null and key <> (select max(key) from durable.run)",
    )
    assert world.state(run_id)[0] == "waiting"
    assert sweep(world) == 0
    drain(world)

    assert world.result(run_id) == 1999 + 3998


def test_no_more_children_than_wanted_are_executed_at_a_time_and_all_are_in_the_end(world: World) -> None:
    task = world.task(double)
    run_id = world.run(parent_of(world, lambda: durable.map(task, range(7), max_concurrency=3)))

    executed = 0
    while world.state(run_id) == ("waiting", "children"):
        found = pending(world)
        assert len(found) == min(3, 7 - executed)
        world.deliver(found[0])
        executed += 1
    assert executed == 7
    drain(world)
    assert world.result(run_id) == [0, 2, 4, 6, 8, 10, 12]


def test_a_slot_that_a_cancelled_child_left_is_given_on(world: World) -> None:
    task = world.task(double)
    world.run(
        parent_of(
            world,
            lambda: durable.map(task, range(4), max_concurrency=2, return_exceptions=True) and "over",
        )
    )
    Runs(world.app).cancel_many(pending(world))
    assert pending(world) == []

    sweep(world)

    assert len(pending(world)) == 2


def test_results_too_large_together_are_an_error_that_says_so(store: Store) -> None:
    with delivering(store, durable_max_payload=4000) as world:

        def large() -> str:
            return "x" * 1500

        task = world.task(large)

        result = finished(world, lambda: durable.gather(*[task.s()] * 4))

        assert isinstance(result, durable.PayloadTooLargeError)
        assert "4 children of 'gather'" in str(result)


# -- side by side in one process --------------------------------------------------------------------------


def test_steps_on_threads_get_their_keys_in_the_order_of_the_calls(world: World) -> None:
    import threading

    barrier = threading.Barrier(3)

    @durable.step
    def meet(number: int) -> str:
        barrier.wait(10)  # all three are at work at once
        return f"{number} by {durable.idempotency_key().rpartition('/')[2]}"

    def parent() -> Any:
        return durable.gather(*(meet.s(number) for number in range(3)))

    run_id = world.run(parent_of(world, parent))

    assert world.result(run_id) == ["0 by meet", "1 by meet#2", "2 by meet#3"]


def test_a_step_that_fails_beside_others_loses_none_of_them(world: World) -> None:
    @durable.step
    def odd(number: int) -> int:
        if number == 1:
            raise durable.Fatal("one")
        return number

    def parent() -> Any:
        together = durable.map(odd, range(4), return_exceptions=True, max_concurrency=2)
        assert isinstance(together[1], durable.Fatal)
        with pytest.raises(durable.Fatal, match="one"):
            durable.map(odd, range(4))
        return [together[0], *together[2:]]

    run_id = world.run(parent_of(world, parent))

    assert world.result(run_id) == [0, 2, 3]
    assert list(world.steps(run_id).values()).count(("error", 1)) == 2


def test_steps_that_were_done_side_by_side_are_replayed_and_the_others_made(world: World) -> None:
    crash = [True]

    @durable.step
    def one(number: int) -> int:
        done.append(number)
        if number == 2 and crash:
            crash.clear()
            raise ConnectionError
        return number

    run_id = world.run(
        parent_of(world, lambda: durable.map(one, range(4)), retry_backoff=False, default_retry_delay=0)
    )
    drain(world)

    assert world.result(run_id) == [0, 1, 2, 3]
    assert sorted(done) == [0, 1, 2, 2, 3]


def test_what_is_no_choice_between_detached_and_not_is_refused(world: World) -> None:
    for calling in (durable.call, durable.gather):
        with pytest.raises(StepUsageError, match="detached='no' is neither True nor False"):
            calling(world.task(double).s(1), detached="no")


def test_a_long_retry_beside_other_steps_leaves_the_worker_when_they_are_done(
    world: World, store: Store
) -> None:
    begun = threading.Barrier(3, timeout=20)

    @durable.step(max_retries=1, default_retry_delay=60)
    def one(number: int) -> int:
        done.append(number)
        if done.count(number) == 1:
            begun.wait()
            if number == 0:
                raise ConnectionError
        return number

    run_id = world.run(parent_of(world, lambda: durable.map(one, range(3))))
    assert world.state(run_id) == ("waiting", "retry")
    assert sorted(done) == [0, 1, 2]
    move_clock(store, "2 minutes")
    with keeper(store) as statements:
        statements.wake(10)
    world.app.backend.store.close()
    drain(world)

    assert world.result(run_id) == [0, 1, 2]
    assert sorted(done) == [0, 0, 1, 2]


# -- transactions that meet -------------------------------------------------------------------------------


def test_a_child_that_ends_while_its_parent_is_locked_wakes_it_afterwards(world: World, store: Store) -> None:
    run_id = waiting_for_one(world, world.task(double).s(1))
    with open_transaction(store) as other:
        other.execute("select from durable.run where id = %s for update", (run_id,))
        delivery = background(lambda: world.deliver(only_child(world)))
        wait_until_blocked(store)
        assert execute(store, "select state from durable.run where wait is not null") == [
            {"state": "succeeded"}
        ]
    delivery.result(20)

    assert pending(world) == [run_id]


def interleave(world: World, examples: int, *, derandomize: bool = False) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=derandomize,
    )
    @given(st.integers(2, 6), st.sampled_from([None, 2]), st.booleans())
    def test(size: int, abreast: int | None, rewait: bool) -> None:  # noqa: FBT001
        parent = parent_of(
            world,
            lambda: durable.map(world.app.tasks["double"], range(size), max_concurrency=abreast),
        )
        run_id = world.run(parent)
        if rewait:  # the parent comes back too early, while its children end
            come_back(world, run_id)
        while world.state(run_id)[0] != "succeeded":
            found = eventually(lambda: pending(world), timeout=2, what="somebody to wake the parent")
            together = [background(lambda one=one: world.deliver(one)) for one in found]
            for delivery in together:
                delivery.result(30)
        assert world.result(run_id) == [2 * number for number in range(size)]

    test()


def test_whatever_the_interleaving_the_last_child_wakes_its_parent(world: World) -> None:
    world.task(double, name="double")
    interleave(world, examples=25)


def test_a_look_before_the_commit_would_be_noticed(world: World) -> None:
    """Two children that end at once each see the other one unfinished, and nobody wakes their parent."""
    world.task(double, name="double")
    runs: Any = world.app.backend.store.runs
    real = runs.waits.follow

    def too_early(connection: Any, child: Any) -> Any:
        rows = connection.execute("select pg_sleep(0.01)")
        assert rows is not None
        return real(connection, child)

    runs.waits.follow = too_early
    finish = type(runs).finish

    def in_one_transaction(
        self: Any, run: int, fence: Any, outcome: Any, links: Any = (), **more: Any
    ) -> Any:
        child = more.pop("child", None)
        if child is None:
            return finish(self, run, fence, outcome, links, **more)

        def work(connection: Any) -> Any:
            parameters = {**outcome.__dict__, "run": run, "fence": fence, "state": outcome.state.value}
            with connection.transaction():
                connection.execute(self._sql["finish"], parameters)
                too_early(connection, replace(child, abreast=None))

        self._connections.patiently(work)
        from celery_durable.store.writes import Finished

        return Finished([])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(runs), "finish", in_one_transaction)
        with pytest.raises(BaseException):  # noqa: B017, PT011  (whatever notices it)
            interleave(world, examples=60, derandomize=True)


def test_a_group_inside_a_parent_that_does_not_wait_is_no_child(world: World) -> None:
    task = world.task(double)

    def parent() -> str:
        group(task.s(1), task.s(2)).apply_async()
        return "gone on"

    assert finished(world, parent) == "gone on"
    assert children(world, "id") == []
