"""Forks: a run that begins where another one was, with nothing of it but its checkpoints."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from celery import chain
from contending import background, keeper, move_clock, wait_until_blocked
from delivering import World, delivering
from inspecting import execute, open_transaction

import celery_durable as durable
from celery_durable.exceptions import SerializationError
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

done: list[str] = []


@dataclass
class Price:
    """A value with a type."""

    cents: int


@durable.step
def look_up(article: str) -> Price:
    done.append("look_up")
    return Price(100)


@durable.step
def charge(price: Price) -> str:
    done.append("charge")
    return f"{price.cents} by {durable.idempotency_key()}"


@durable.step
def notify(receipt: str) -> None:
    done.append("notify")


@durable.step
def break_off() -> None:
    done.append("break_off")
    raise durable.Fatal("not today")


def order(article: str) -> list[Any]:
    times = [durable.now()]
    price = look_up(article)
    times.append(durable.now())
    receipt = charge(price)
    drawn = [str(durable.uuid4()), durable.random().random()]
    notify(receipt)
    return [str(times), receipt, drawn, type(price).__name__]


def failing(article: str) -> None:
    look_up(article)
    break_off()
    notify("never")


def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def one() -> int:
    return 1


def plus_one(value: int) -> int:
    return value + 1


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


def test_a_fork_keeps_the_steps_before_the_chosen_one_and_runs_the_others_again(world: World) -> None:
    source = world.run(world.task(order), "a book")
    done.clear()

    forked = Runs(world.app).fork(source, from_step="charge")
    assert forked.id is not None
    world.deliver(forked.id)

    assert (forked.kept, forked.again) == (("look_up",), ("charge", "notify"))
    assert done == ["charge", "notify"]
    assert world.steps(forked.id) == {"look_up": ("ok", 0), "charge": ("ok", 1), "notify": ("ok", 1)}


def test_a_fork_has_the_times_and_random_numbers_of_its_source_and_keys_of_its_own(world: World) -> None:
    source = world.run(world.task(order), "a book")

    forked = Runs(world.app).fork(source, from_step="charge")
    assert forked.id is not None
    world.deliver(forked.id)

    times, receipt, drawn, _ = world.result(source)
    other_times, other_receipt, other_drawn, _ = world.result(forked.id)
    assert (times, drawn) == (other_times, other_drawn)
    assert receipt == f"100 by {source}/charge"
    assert other_receipt == f"100 by {forked.id}/charge"


def waiting(article: str) -> str:
    price = look_up(article)
    durable.sleep(hours=1)
    approval = durable.wait_for_signal("approved")
    return f"{charge(price)}, {approval}"


def test_a_fork_has_the_waits_of_its_source_behind_it_and_may_have_been_told_something_else(
    world: World, store: Store
) -> None:
    source = world.run(world.task(waiting), "a book")
    move_clock(store, "2 hours")
    world.app.backend.store.close()  # so that it sees the time, too
    with keeper(store) as statements:
        assert [one.id for one in statements.wake(10)] == [source]
    durable.send_signal(source, "approved", "by ada", app=world.app)
    world.deliver(source)
    done.clear()

    forked = Runs(world.app).fork(
        source, from_step="charge", overrides={"wait_for_signal:approved": "by grace"}
    )
    assert forked.id is not None
    world.deliver(forked.id)

    assert world.result(source) == f"100 by {source}/charge, by ada"
    assert world.result(forked.id) == f"100 by {forked.id}/charge, by grace"
    assert forked.kept == ("look_up", "sleep", "wait_for_signal:approved")
    assert done == ["charge"]


def test_a_dry_run_says_what_would_run_again_and_stores_nothing(world: World) -> None:
    source = world.run(world.task(order), "a book")

    plan = Runs(world.app).fork(source, from_step="notify", overrides={"look_up": Price(1)}, dry_run=True)

    assert (plan.id, plan.kept, plan.overridden, plan.again) == (
        None,
        ("look_up", "charge"),
        ("look_up",),
        ("notify",),
    )
    assert len(execute(world.store, "select id from durable.run")) == 1


def test_an_override_is_stored_with_its_type_and_its_step_does_not_run(world: World) -> None:
    source = world.run(world.task(order), "a book")
    done.clear()

    forked = Runs(world.app).fork(source, overrides={"look_up": Price(7)})
    assert forked.id is not None
    world.deliver(forked.id)

    assert done == ["charge", "notify"]
    assert world.result(forked.id)[1].startswith("7 by ")
    assert world.result(forked.id)[3] == "Price"


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_results_of_children_cannot_be_overridden_and_a_dry_run_says_so_too(
    world: World, *, dry_run: bool
) -> None:
    task = world.task(order)

    def parent() -> None:
        durable.gather(task.s("pen"))

    source = world.run(world.task(parent))
    (child,) = execute(world.store, "select id from durable.run where parent is not null")
    world.deliver(child["id"])
    world.deliver(source)

    with pytest.raises(SerializationError, match=r"what its children returned; fork from it"):
        Runs(world.app).fork(source, overrides={"gather": [1]}, dry_run=dry_run)


def test_a_sleep_has_no_value_that_could_be_overridden(world: World) -> None:
    source = world.run(world.task(waiting), "a book")

    with pytest.raises(SerializationError, match=r"a sleep has no value; fork from it"):
        Runs(world.app).fork(source, overrides={"sleep": 3}, dry_run=True)


def approvals() -> list[Any]:
    return [durable.wait_for_signal(name) for name in ("first", "second", "third")]


def test_another_payload_of_a_signal_is_refused_where_a_wait_in_front_of_it_is_begun_anew(
    world: World,
) -> None:
    source = world.task(approvals).delay().id
    for name in ("first", "second", "third"):
        durable.send_signal(source, name, name, app=world.app)
    world.deliver(source)
    first, second, third = (f"wait_for_signal:{name}" for name in ("first", "second", "third"))
    runs = Runs(world.app)

    for overrides in ({first: "a", third: "c"}, {third: "c"}):
        with pytest.raises(SerializationError, match=f"in front of '{second}', and comes to that wait first"):
            runs.fork(source, from_step=None if first in overrides else second, overrides=overrides)
    forked = runs.fork(source, overrides={first: "a", second: "b", third: "c"})
    assert forked.id is not None
    world.deliver(forked.id)

    assert world.result(forked.id) == ["a", "b", "c"]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    "given", [{"overrides": {"look_up": object()}}, {"args": [object()]}], ids=["override", "argument"]
)
def test_what_cannot_be_stored_is_found_by_a_dry_run_too(
    world: World, given: dict[str, Any], *, dry_run: bool
) -> None:
    source = world.run(world.task(order), "a book")

    with pytest.raises(Exception, match=r"cannot be stored|not JSON serializable"):
        Runs(world.app).fork(source, **given, dry_run=dry_run)


def test_a_key_that_is_no_text_is_an_error_that_says_so(world: World) -> None:
    source = world.run(world.task(order), "a book")

    with pytest.raises(TypeError, match="5 is no key of a step"):
        Runs(world.app).fork(source, from_step=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="5 is no key of a step"):
        Runs(world.app).fork(source, overrides={5: 1})  # type: ignore[dict-item]


def test_a_stored_error_may_be_overridden_with_the_value_that_should_have_been(world: World) -> None:
    source = world.run(world.task(failing), "a book")
    assert world.state(source)[0] == "failed"

    forked = Runs(world.app).fork(source, overrides={"break_off": None})
    assert forked.id is not None
    world.deliver(forked.id)

    assert world.state(forked.id)[0] == "succeeded"
    assert world.state(source)[0] == "failed"


def test_a_fork_may_have_other_arguments(world: World) -> None:
    task = world.task(echo)
    source = world.run(task, 1)

    forked = Runs(world.app).fork(source, args=[2, 3], kwargs={"express": True})
    assert forked.id is not None
    world.deliver(forked.id)

    assert world.result(forked.id) == [[2, 3], {"express": True}]
    assert world.result(source) == [[1], {}]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"args": "5"}, r"args='5'.*a list or a tuple"),
        ({"args": 5}, r"args=5.*a list or a tuple"),
        ({"kwargs": [("article", 5)]}, r"kwargs=.*a dict"),
        ({"args": [1, 2]}, r"takes 1 positional argument but 2 were given"),
        ({"args": []}, r"missing 1 required positional argument: 'article'"),
        ({"kwargs": {"article": 5}}, r"multiple values for argument 'article'"),
        ({"args": [], "kwargs": {"articel": 5}}, r"unexpected keyword argument 'articel'"),
    ],
    ids=str,
)
def test_arguments_that_a_call_would_refuse_are_refused(
    world: World, given: dict[str, Any], problem: str, *, dry_run: bool
) -> None:
    source = world.run(world.task(order), "a book")

    with pytest.raises(TypeError, match=problem):
        Runs(world.app).fork(source, **given, dry_run=dry_run)
    assert len(execute(world.store, "select id from durable.run")) == 1


def test_arguments_are_not_looked_at_where_a_call_would_not_or_the_task_is_not_known(world: World) -> None:
    untyped, gone = world.task(order, typing=False), world.task(one)
    sources = [world.run(untyped, "a book"), world.run(gone)]
    world.app.tasks.unregister(gone.name)

    for source in sources:
        assert Runs(world.app).fork(source, args=[1, 2, 3]).published


def test_compensations_are_no_steps_of_a_fork(world: World) -> None:
    def undo(what: str) -> None: ...

    def refused(article: str) -> None:
        charge(look_up(article))
        durable.on_rollback(undo, "charge")
        break_off()

    source = world.run(world.task(refused), "a book")
    assert "rollback:undo" in world.steps(source)
    runs = Runs(world.app)

    for planned in (runs.fork(source, from_step="charge", dry_run=True), runs.fork(source)):
        assert planned.taken_back
        assert not {key for key in (*planned.again, *planned.kept) if "rollback" in key}
    with pytest.raises(durable.StepNotFoundError, match="no stored step 'rollback:undo'"):
        runs.fork(source, from_step="rollback:undo")


def test_a_fork_starts_links_of_its_own_also_where_the_chain_was_frozen(world: World) -> None:
    first, second = world.task(one), world.task(plus_one, name="second")
    frozen = chain(first.s(), second.s()).apply_async()
    source = frozen.parent.id
    world.deliver(source)

    forked = Runs(world.app).fork(source)
    assert forked.id is not None
    world.deliver(forked.id)

    linked = execute(
        world.store, "select id, root, parent from durable.run where task = 'second' order by key"
    )
    assert [(row["root"], row["parent"]) for row in linked] == [(source, source), (forked.id, forked.id)]
    assert linked[0]["id"] == frozen.id != linked[1]["id"]


def test_lineage_is_seen_from_both_ends_and_both_runs_tell_of_the_fork(world: World) -> None:
    runs = Runs(world.app)
    source = world.run(world.task(order), "a book")

    forked = runs.fork(source, from_step="charge", reason="the price was wrong", actor="ada")
    assert forked.id is not None

    assert runs.get(source).forks == (forked.id,)
    assert runs.get(forked.id).forked_from == source
    for run_id, kind in ((source, "forked"), (forked.id, "fork")):
        (event,) = runs.get(run_id).events
        assert (event.kind, event.actor) == (kind, "ada")
        assert event.detail["reason"] == "the price was wrong"
        assert event.detail["from_step"] == "charge"


def test_a_step_that_was_never_stored_is_an_error_that_names_the_nearest(world: World) -> None:
    source = world.run(world.task(order), "a book")
    runs = Runs(world.app)

    with pytest.raises(durable.StepNotFoundError, match="Did you mean 'charge'"):
        runs.fork(source, from_step="chrge")
    with pytest.raises(durable.StepNotFoundError, match="no stored step 'x'"):
        runs.fork(source, overrides={"x": 1})
    with pytest.raises(durable.RunNotFoundError):
        runs.fork("nobody")
    with pytest.raises(durable.SerializationError, match="the override of step 'look_up'"):
        runs.fork(source, overrides={"look_up": object()})
    assert len(execute(world.store, "select id from durable.run")) == 1


def test_a_fork_waits_for_a_write_to_its_source_and_sees_all_of_it_or_nothing(world: World) -> None:
    """A resume is putting steps aside: a copy in the middle of it would be half of either."""
    source = world.run(world.task(failing), "a book")
    runs = Runs(world.app)
    with open_transaction(world.store) as resuming:
        resuming.execute("select from durable.run where id = %s for no key update", (source,))
        forking = background(lambda: runs.fork(source, overrides={"look_up": Price(1)}))
        wait_until_blocked(world.store)
        assert not forking.done()
    forked = forking.result(10)

    assert forked.kept == ("look_up",)


def test_a_source_that_is_deleted_meanwhile_is_an_error_and_leaves_no_fork(world: World) -> None:
    source = world.run(world.task(order), "a book")
    runs = Runs(world.app)
    read, deleted = threading.Event(), threading.Event()
    forks = runs._store.forks
    plainly_read = forks.read

    def slow_read(run_id: str) -> Any:
        found = plainly_read(run_id)
        read.set()
        deleted.wait(10)
        return found

    forks.read = slow_read  # type: ignore[method-assign]
    forking = background(lambda: runs.fork(source))
    read.wait(10)
    execute(world.store, "delete from durable.run where id = %s", source)
    deleted.set()

    with pytest.raises(durable.RunStateError, match="changed while it was being forked"):
        forking.result(10)
    assert execute(world.store, "select id from durable.run") == []


def test_a_fork_whose_answer_was_lost_is_made_once(world: World) -> None:
    source = world.run(world.task(order), "a book")
    forks = Runs(world.app)._store.forks
    fork = forks.fork
    answers: list[bool] = []

    def lossy(*args: Any, **kwargs: Any) -> bool:
        answers.extend(fork(*args, **kwargs) for _ in range(2))  # as `patiently` does after a lost answer
        return answers[-1]

    runs = Runs(world.app)
    runs._store.forks.fork = lossy  # type: ignore[method-assign]
    forked = runs.fork(source, from_step="charge")
    assert forked.id is not None

    assert answers == [True, True]
    assert world.steps(forked.id) == {"look_up": ("ok", 0)}
    assert len(runs.get(source).events) == 1
