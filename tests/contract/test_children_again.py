"""A parent that is resumed: its failed children go on with it, and what it has of the others is kept."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, chain
from celery.exceptions import WorkerTerminate
from contending import keeper
from delivering import World, delivering, drain, pending
from inspecting import execute

import celery_durable as durable
from celery_durable import plain
from celery_durable.exceptions import RunStateError
from celery_durable.keeper import services
from celery_durable.operations import Filter, Runs
from celery_durable.store.waits import WaitStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

done: list[Any] = []
broken: set[Any] = set()


@durable.step
def work(name: str) -> str:
    done.append(name)
    return f"{name} done"


def child(number: int) -> int:
    """Do a step; fail while this number is broken."""
    work(f"begin {number}")
    if number in broken:
        raise durable.Fatal(str(number))
    return 2 * number


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()
    broken.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        plain.register(made.app)
        made.task(child, name="child")
        yield made


def calls(world: World, *numbers: int) -> list[Any]:
    return [world.app.tasks["child"].s(number) for number in numbers]


def begun(world: World, body: Callable[[], Any]) -> str:
    """Start a parent and execute all that can be."""
    body.__name__ = "parent"
    run_id = world.run(world.task(body, autoretry_for=()))
    drain(world)
    return run_id


def children(world: World, columns: str = "state, generation") -> list[tuple[Any, ...]]:
    rows = execute(world.store, f"select {columns} from durable.run where wait is not null order by key")
    return [tuple(row.values()) for row in rows]


def steps_of(name: str) -> int:
    return done.count(name)


def test_resuming_a_parent_resumes_its_failed_child_and_keeps_the_others(world: World) -> None:
    broken.add(2)
    run_id = begun(world, lambda: [work("before"), durable.gather(*calls(world, 1, 2, 3)), work("after")])
    assert world.state(run_id)[0] == "failed"
    broken.clear()

    outcome = Runs(world.app).resume(run_id)
    drain(world)

    assert outcome.children == 1
    assert world.result(run_id) == ["before done", [2, 4, 6], "after done"]
    assert children(world) == [("succeeded", 0), ("succeeded", 1), ("succeeded", 0)]
    assert sorted(done) == ["after", "before", "begin 1", "begin 2", "begin 3"], "no step was repeated"


def test_a_child_that_fails_again_fails_its_parent_again_and_may_be_resumed_again(world: World) -> None:
    broken.add(1)
    run_id = begun(world, lambda: durable.call(calls(world, 1)[0]))
    for generation in (1, 2):
        Runs(world.app).resume(run_id)
        drain(world)
        assert world.state(run_id)[0] == "failed"
        assert children(world) == [("failed", generation)]
    broken.clear()

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == 2
    assert children(world) == [("succeeded", 3)]


@pytest.mark.parametrize("over", [True, False], ids=["over by then", "still pending"])
def test_a_child_may_be_resumed_first_and_then_its_parent(world: World, over: bool) -> None:  # noqa: FBT001
    broken.add(1)
    run_id = begun(world, lambda: durable.call(calls(world, 1)[0]))
    ((child_id,),) = children(world, "id")
    broken.clear()
    Runs(world.app).resume(child_id)
    if over:
        drain(world)
        assert world.state(run_id)[0] == "failed"

    assert Runs(world.app).resume(run_id).children == 0
    drain(world)

    assert world.result(run_id) == 2
    assert children(world) == [("succeeded", 1)]


def test_both_at_once_by_a_filter_and_a_dry_run_counts_them(world: World) -> None:
    broken.update({1, 2})
    run_id = begun(world, lambda: durable.gather(*calls(world, 1, 2, 3)))
    broken.clear()
    runs, everything = Runs(world.app), Filter(states=["failed"])

    would = {one.id: one.children for one in runs.resume_many(everything, dry_run=True)}
    assert would.pop(run_id) == 2
    assert set(would.values()) == {0}
    assert children(world)[0] == ("failed", 0), "a dry run changes nothing"
    assert all(one.changed for one in runs.resume_many(everything))
    drain(world)

    assert world.result(run_id) == [2, 4, 6]
    assert children(world) == [("succeeded", 1), ("succeeded", 1), ("succeeded", 0)]


def test_children_of_children_go_on_from_the_top(world: World) -> None:
    broken.add(2)

    def middle(number: int) -> int:
        return sum(durable.gather(*calls(world, number, 2)))

    between = world.task(middle, autoretry_for=())
    run_id = begun(world, lambda: durable.map(between, [5, 6]))
    assert [state for state, _ in children(world)].count("failed") == 4
    broken.clear()

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == [14, 16]
    assert steps_of("begin 5") == steps_of("begin 6") == 1
    assert steps_of("begin 2") == 2, "once for each of two children"


def test_an_error_that_the_body_has_caught_stays(world: World) -> None:
    broken.add(1)
    fails = [True]

    def parent() -> Any:
        results = durable.gather(*calls(world, 1, 2), return_exceptions=True)
        work("went on")
        if fails:
            raise durable.Fatal
        return [type(results[0]).__name__, results[1]]

    run_id = begun(world, parent)
    broken.clear()
    fails.clear()

    assert Runs(world.app).resume(run_id).children == 0
    drain(world)

    assert world.result(run_id) == ["Fatal", 4]
    assert children(world) == [("failed", 0), ("succeeded", 0)]


def test_a_wait_to_which_only_an_error_has_led_is_left_behind_when_the_error_does_not_come_back(
    world: World,
) -> None:
    broken.update({1, 2})

    def parent() -> Any:
        try:
            return durable.call(calls(world, 1)[0])
        except durable.Fatal:
            return ["instead", durable.call(calls(world, 2)[0])]

    run_id = begun(world, parent)
    assert world.state(run_id)[0] == "failed"
    broken.clear()
    Runs(world.app).resume(run_id)
    drain(world)

    # Nothing came behind these two: the first one succeeds now, so the body does not come to the other.
    assert world.result(run_id) == 2


def test_a_cancelled_parent_goes_on_with_what_its_children_have_done(world: World) -> None:
    def waits(number: int) -> Any:
        work(f"waits {number}")
        return durable.wait_for_signal("go")

    waiting = world.task(waits)
    run_id = begun(world, lambda: durable.gather(*calls(world, 1), waiting.s(2), waiting.s(3)))
    Runs(world.app).cancel(run_id)
    with keeper(world.store) as statements:
        assert services.cascade(statements) == 2
    assert [state for state, _ in children(world)] == ["succeeded", "cancelled", "cancelled"]

    assert Runs(world.app).resume(run_id).children == 2
    drain(world)
    for (child_id,) in children(world, "id")[1:]:
        durable.send_signal(child_id, "go", "gone", app=world.app)
    drain(world)

    assert world.result(run_id) == [2, "gone", "gone"]
    assert sorted(done) == ["begin 1", "waits 2", "waits 3"]


def test_a_parent_whose_children_are_still_told_to_stop_cannot_be_resumed_yet(world: World) -> None:
    seen: list[str] = []

    def slow() -> str:
        if seen:
            return work("the news come with this one")
        Runs(world.app).cancel(run_id)
        with keeper(world.store) as statements:
            services.cascade(statements)
        with pytest.raises(RunStateError) as refused:
            Runs(world.app).resume(run_id)
        seen.append(str(refused.value))
        return work("the news come with this one") and work("never")

    task = world.task(slow)
    body: Any = lambda: durable.call(task.s())  # noqa: E731
    body.__name__ = "parent"
    run_id = world.task(body).delay().id
    world.deliver(run_id)
    drain(world)
    assert "still coming to their end" in seen[0]
    assert children(world, "state") == [("cancelled",)]

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == "the news come with this one done"


def test_as_many_children_go_on_at_a_time_as_were_allowed_at_first(world: World) -> None:
    broken.update(range(6))
    task = world.app.tasks["child"]
    run_id = begun(world, lambda: durable.map(task, range(7), max_concurrency=2))
    assert [state for state, _ in children(world)] == ["failed"] * 6 + ["succeeded"]
    broken.clear()
    Runs(world.app).resume(run_id)
    world.deliver(run_id)

    executed = 0
    while world.state(run_id) == ("waiting", "children"):
        found = pending(world)
        assert len(found) == min(2, 6 - executed)
        world.deliver(found[0])
        executed += 1
    drain(world)

    assert executed == 6
    assert world.result(run_id) == [0, 2, 4, 6, 8, 10, 12]


def test_a_child_that_was_taken_back_begins_anew(world: World) -> None:
    broken.add("flight")
    keys: list[str] = []

    @durable.step
    def book() -> str:
        keys.append(durable.idempotency_key())
        done.append("booked")
        return "seat"

    def trip() -> str:
        seat = book()
        durable.on_rollback(done.append, "taken back")
        if "flight" in broken:
            raise durable.Fatal("no")
        return seat

    task = world.task(trip)
    run_id = begun(world, lambda: durable.gather(task.s(), *calls(world, 1)))
    assert world.state(run_id)[0] == "failed"
    assert done == ["booked", "taken back", "begin 1"]
    broken.clear()

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == ["seat", 2]
    assert done == ["booked", "taken back", "begin 1", "booked"]
    assert len(set(keys)) == 2, "what was refunded is charged under another key"
    assert children(world, "state, replacements") == [("succeeded", 1), ("succeeded", 0)]


def test_code_that_was_mended_may_ask_for_other_children(world: World) -> None:
    broken.add(1)
    numbers = [1]
    run_id = begun(world, lambda: durable.gather(*calls(world, *numbers)))
    numbers[:] = [7, 8]

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == [14, 16]
    assert children(world) == [("failed", 0), ("succeeded", 0), ("succeeded", 0)]


def test_results_that_were_too_large_are_collected_again_under_another_limit(store: Store) -> None:
    with delivering(store, durable_max_payload=4000) as world:

        def large_body() -> str:
            done.append("large")
            return "x" * 1500

        large = world.task(large_body)
        run_id = begun(world, lambda: len(durable.gather(*[large.s()] * 4)))
        assert isinstance(world.result(run_id), durable.PayloadTooLargeError)
        store_settings: Any = world.app.backend.store
        object.__setattr__(store_settings.settings, "max_payload", 100_000)

        Runs(world.app).resume(run_id)
        drain(world)

        assert world.result(run_id) == 4
        assert done == ["large"] * 4


def test_plain_tasks_and_chains_are_tried_again_as_well(world: World) -> None:
    broken.update({"plain", "link"})

    def ordinary() -> str:
        if "plain" in broken:
            raise ValueError
        return "plain"

    def link(value: int) -> int:
        if "link" in broken:
            raise durable.Fatal
        return value + 1

    plain_task, link_task = world.task(ordinary, base=Task), world.task(link)
    run_id = begun(world, lambda: durable.gather(plain_task.s(), chain(*calls(world, 1), link_task.s())))
    assert world.state(run_id)[0] == "failed"
    broken.clear()

    Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == ["plain", 3]


def test_a_wait_from_before_the_migration_is_known_by_its_children(world: World) -> None:
    broken.add(1)
    run_id = begun(world, lambda: durable.gather(*calls(world, 1, 2)))
    execute(world.store, "update durable.checkpoint set wait = null")
    broken.clear()

    assert Runs(world.app).resume(run_id).children == 1
    drain(world)

    assert world.result(run_id) == [2, 4]


def test_a_wait_that_an_older_worker_took_up_with_children_of_its_own_is_known_by_these(world: World) -> None:
    """It does not know the column, and leaves there what was in it."""
    broken.add(1)
    run_id = begun(world, lambda: durable.call(calls(world, 1)[0]))
    execute(world.store, "update durable.checkpoint set wait = gen_random_uuid() where wait is not null")

    broken.clear()

    assert Runs(world.app).resume(run_id).children == 1
    drain(world)

    assert world.result(run_id) == 2
    assert children(world) == [("succeeded", 1)]


def test_a_lost_answer_starts_no_child_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction has committed, and is repeated."""
    broken.add(1)
    run_id = begun(world, lambda: durable.call(calls(world, 1)[0]))
    real = WaitStore.take_up

    def twice(self: WaitStore, *given: Any) -> Any:
        first = real(self, *given)
        assert first.left
        return real(self, *given)

    monkeypatch.setattr(WaitStore, "take_up", twice)
    Runs(world.app).resume(run_id)
    world.deliver(run_id)

    assert world.state(run_id) == ("waiting", "children")
    assert children(world) == [("pending", 1)]


def test_a_superseded_attempt_starts_no_child_again(world: World) -> None:
    broken.add(1)
    run_id = begun(world, lambda: durable.call(calls(world, 1)[0]))
    Runs(world.app).resume(run_id)
    waits: Any = world.app.backend.store.runs.waits
    real = waits.take_up

    def too_late(run: int, fence: uuid.UUID, wait: Any) -> Any:
        execute(world.store, "update durable.run set fence = %s where id = %s", uuid.uuid4(), run_id)
        return real(run, fence, wait)

    waits.take_up = too_late
    world.deliver(run_id)

    assert children(world) == [("failed", 0)]


def test_a_parent_that_comes_back_too_early_does_not_start_a_child_again_that_has_just_failed(
    world: World,
) -> None:
    broken.update({1, 2})
    run_id = begun(world, lambda: durable.gather(*calls(world, 1, 2)))
    Runs(world.app).resume(run_id)
    world.deliver(run_id)
    first, _ = pending(world)
    world.deliver(first)
    execute(
        world.store,
        "update durable.run set state = 'pending', reason = null, due = now() where id = %s",
        run_id,
    )
    world.deliver(run_id)

    assert children(world) == [("failed", 1), ("pending", 1)]
    drain(world)
    assert world.state(run_id)[0] == "failed"


@pytest.mark.parametrize("resumed", [False, True], ids=["a retry", "a resume"])
def test_an_error_that_was_caught_in_front_of_a_sleep_stays(world: World, resumed: bool) -> None:  # noqa: FBT001
    """Put aside, its step would succeed the next time, and the body would never come to the sleep again."""
    broken.update({"step", "body"})

    @durable.step
    def fetch() -> str:
        if "step" in broken:
            raise durable.Fatal
        return "fetched"

    def body() -> str:
        try:
            return fetch()
        except durable.Fatal:
            durable.sleep(milliseconds=1)
        if "body" in broken:
            broken.clear()
            raise ConnectionError
        return "instead"

    options = {"autoretry_for": ()} if resumed else {"retry_backoff": False, "default_retry_delay": 0}
    run_id = world.run(world.task(body, **options))
    if resumed:
        Runs(world.app).resume(run_id)
    drain(world)

    assert world.result(run_id) == "instead"


def test_a_resumed_fork_leaves_the_children_of_its_source_alone(world: World) -> None:
    """It has kept how they ended, as it has kept the steps in front of it."""
    broken.update({1, "step"})

    @durable.step
    def behind() -> str:
        if "step" in broken:
            raise durable.Fatal
        return "behind"

    def parent() -> list[str]:
        try:
            durable.call(calls(world, 1)[0])
        except durable.Fatal as error:
            return [str(error), behind()]
        return []

    source = begun(world, parent)
    fork = Runs(world.app).fork(source, from_step="behind")
    drain(world)
    assert fork.id is not None
    assert world.state(fork.id)[0] == "failed"
    broken.clear()

    assert Runs(world.app).resume(fork.id).children == 0
    drain(world)

    assert world.result(fork.id) == ["1", "behind"]
    assert children(world) == [("failed", 0)]


class Killed(WorkerTerminate):
    """The pool child ends here."""


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_parent_that_dies_beside_the_transaction_starts_its_child_again_once(
    world: World, side: str
) -> None:
    broken.update({1, 2})
    run_id = begun(world, lambda: durable.gather(*calls(world, 1, 2, 3)))
    Runs(world.app).resume(run_id)
    waits: Any = world.app.backend.store.runs.waits
    real = waits.take_up

    def dies(*given: Any) -> Any:
        if side == "after":
            real(*given)
        raise Killed

    waits.take_up = dies
    with suppress(Killed):
        world.deliver(run_id)
    del waits.take_up
    if side == "before":
        row = world.store.runs.recover_child(
            run_id,
            token=world.token,
            pid=None,
            error="killed",
            max_recoveries=9,
            result=b"{}",
            result_type="application/json",
            budget=1,
        )
        assert row is not None
        world.deliver(run_id)
    assert children(world) == [("pending", 1), ("pending", 1), ("succeeded", 0)]
    broken.clear()
    drain(world)

    assert world.result(run_id) == [2, 4, 6]
    assert children(world) == [("succeeded", 1), ("succeeded", 1), ("succeeded", 0)]
