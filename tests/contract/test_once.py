"""Keys that stand for one run: whoever calls meanwhile, however that run ends, whenever it is deleted."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import celery
import pytest
from contending import background, move_clock, together, wait_until_blocked
from delivering import World, delivering
from inspecting import execute, open_transaction

import celery_durable as durable
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

done: list[Any] = []


def order(article: str, express: Any = None) -> str:
    done.append((article, express))
    return article


def failing(article: str) -> None:
    raise durable.Fatal(article)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


def count(store: Store) -> int:
    return int(execute(store, "select count(*) from durable.run")[0]["count"])


def test_a_second_call_with_a_key_returns_the_run_of_the_first(world: World) -> None:
    task = world.task(order)

    first = task.apply_async(("a book",), idempotency_key="order-7")
    second = task.apply_async(("a lamp",), idempotency_key="order-7")
    world.deliver(first.id)
    third = task.apply_async(("a lamp",), idempotency_key="order-7")

    assert first.id == second.id == third.id
    assert third.get() == "a book"
    assert count(world.store) == 1
    assert [(key.kind, key.key) for key in Runs(world.app).get(first.id).keys] == [("idempotency", "order-7")]


def test_keys_of_other_tasks_and_other_keys_are_no_matter(world: World) -> None:
    ids = {
        world.task(order).apply_async(("x",), idempotency_key="order-7").id,
        world.task(order).apply_async(("x",), idempotency_key="order-7").id,
        world.task(order).apply_async(("x",), idempotency_key="order-8").id,
        world.task(order).apply_async(("x",)).id,
    }

    assert len(ids) == 4


def test_callers_at_the_same_moment_get_one_run(world: World) -> None:
    task = world.task(order)

    ids = together(*(lambda: task.apply_async(("x",), idempotency_key="k").id for _ in range(8)))

    assert len(set(ids)) == 1
    assert count(world.store) == 1


def test_a_caller_that_waits_for_the_first_one_sees_its_run_when_it_commits(world: World) -> None:
    """The snapshot of its first statement is older than that run: it must look again."""
    task = world.task(order)
    with open_transaction(world.store) as first:
        first.execute(
            "insert into durable.once (task, kind, key, run) values (%s, 'idempotency', 'k', 'first')",
            (task.name,),
        )
        second = background(lambda: task.apply_async(("x",), idempotency_key="k").id)
        wait_until_blocked(world.store)
        first.execute(
            "insert into durable.run (id, task, queue, state, due, message, body)"
            " values ('first', %s, 'q', 'pending', now(), '', '')",
            (task.name,),
        )

    assert second.result(10) == "first"
    assert count(world.store) == 1


def test_a_caller_that_waits_for_one_that_gives_up_is_the_first(world: World) -> None:
    task = world.task(order)
    with open_transaction(world.store) as first:
        first.execute("savepoint before")
        first.execute(
            "insert into durable.once (task, kind, key, run) values (%s, 'idempotency', 'k', 'first')",
            (task.name,),
        )
        second = background(lambda: task.apply_async(("x",), idempotency_key="k").id)
        wait_until_blocked(world.store)
        first.execute("rollback to before")

    assert second.result(10) != "first"
    assert count(world.store) == 1


def test_a_key_is_to_be_had_again_after_its_time(world: World, store: Store) -> None:
    task = world.task(order)
    first = task.apply_async(("x",), idempotency_key="k", ttl=60).id
    move_clock(store, "59 seconds")
    with delivering(store) as later:
        assert later.task(order, name=task.name).apply_async(("x",), idempotency_key="k", ttl=60).id == first
    move_clock(store, "61 seconds")
    with delivering(store) as later:
        again = later.task(order, name=task.name)
        ids = together(*(lambda: again.apply_async(("x",), idempotency_key="k", ttl=60).id for _ in range(4)))

    assert len(set(ids)) == 1
    assert ids[0] != first


def test_a_key_is_to_be_had_again_when_its_run_is_deleted_and_goes_with_it(world: World) -> None:
    task = world.task(order)
    first = world.run(task, "x", idempotency_key="k")

    assert Runs(world.app).prune(older_than=timedelta(0)) == 1

    assert execute(world.store, "select run from durable.once") == []
    assert task.apply_async(("x",), idempotency_key="k").id != first
    world.app.AsyncResult(world.run(task, "x", idempotency_key="other")).forget()
    assert [row["key"] for row in execute(world.store, "select key from durable.once")] == ["k"]


def test_a_failed_run_keeps_its_key_so_that_it_is_resumed_and_not_repeated(world: World) -> None:
    task = world.task(failing)
    first = world.run(task, "x", idempotency_key="k")

    assert world.state(first)[0] == "failed"
    assert task.apply_async(("x",), idempotency_key="k").id == first


def test_an_enqueue_whose_answer_was_lost_finds_its_own_key(world: World) -> None:
    task = world.task(order)
    once = world.app.backend.store.once  # type: ignore[attr-defined]
    enqueue = once.enqueue
    answers: list[Any] = []

    def lossy(*args: Any) -> Any:
        answers.extend(enqueue(*args) for _ in range(2))
        return answers[-1]

    once.enqueue = lossy
    sent = task.apply_async(("x",), idempotency_key="k")

    assert answers == [(sent.id, "pending"), (sent.id, None)]
    assert count(world.store) == 1


def test_a_throttled_task_starts_once_in_each_while(world: World, store: Store) -> None:
    task = world.task(order)
    first = world.run(task, "x", throttle_key="feed", throttle=60)

    assert task.apply_async(("y",), throttle_key="feed", throttle=60).id == first
    move_clock(store, "61 seconds")
    with delivering(store) as later:
        again = later.task(order, name=task.name)
        assert again.apply_async(("y",), throttle_key="feed", throttle=60).id != first


def test_a_singleton_is_one_run_as_long_as_that_is_not_over(world: World) -> None:
    task = world.task(order, singleton=True)

    first = task.delay("x").id
    assert task.delay(article="x").id == first
    assert task.apply_async(("x", None)).id == first
    other = task.delay("y").id
    world.deliver(first)

    assert len({first, other, task.delay("x").id}) == 3


def test_a_singleton_that_failed_or_was_cancelled_is_over(world: World) -> None:
    task = world.task(failing, singleton=True)
    first = world.run(task, "x")
    second = task.delay("x").id
    Runs(world.app).cancel(second)

    assert len({first, second, task.delay("x").id}) == 3


def test_a_singleton_is_resumed_only_while_no_other_run_has_its_key(world: World) -> None:
    task = world.task(failing, singleton=True)
    first = world.run(task, "x")
    second = task.delay("x").id

    with pytest.raises(durable.RunStateError, match=f"singleton, and {second}"):
        Runs(world.app).resume(first)
    Runs(world.app).cancel(second)
    Runs(world.app).resume(first)

    assert task.delay("x").id == first, "the key is its own again"
    with pytest.raises(durable.RunStateError, match=f"singleton, and {first}"):
        Runs(world.app).resume(second)
    world.deliver(first)
    assert Runs(world.app).resume(second).changed


def test_of_two_singletons_that_are_resumed_together_one_is(world: World) -> None:
    task = world.task(failing, singleton=True)
    both = [world.run(task, "x") for _ in range(2)]

    resumed = Runs(world.app).resume_many(both)

    assert sorted(one.changed for one in resumed) == [False, True]
    (live,) = execute(world.store, "select id from durable.run where finished_at is null")
    (refused,) = (one for one in resumed if not one.changed)
    assert live["id"] in str(refused.error)


def test_a_singleton_whose_key_went_with_its_successor_is_resumed_with_it(world: World) -> None:
    task = world.task(failing, singleton=True)
    first = world.run(task, "x")
    second = world.run(task, "x")
    execute(world.store, "delete from durable.once")
    execute(world.store, "delete from durable.run where id = %s", second)

    Runs(world.app).resume(first)

    assert task.delay("x").id == first


def test_a_singleton_is_not_resumed_beside_one_that_is_just_being_stored(world: World) -> None:
    """Its caller has the key and has not committed: the resume waits for it."""
    task = world.task(failing, singleton=True)
    first, second = world.run(task, "x"), "the one being stored"
    with open_transaction(world.store) as caller:
        caller.execute("select * from durable.once for update")
        resuming = background(lambda: Runs(world.app).resume(first))
        wait_until_blocked(world.store)
        caller.execute(
            "insert into durable.run (id, task, queue, state, message, body, due, published_at)"
            " select %s, task, queue, 'pending', message, body, now(), now() from durable.run where id = %s",
            [second, first],
        )
        caller.execute("update durable.once set run = %s", [second])
    with pytest.raises(durable.RunStateError, match=second):
        resuming.result(20)


@pytest.mark.parametrize(
    "singleton", ["article-{article}", lambda article, express=None: f"article-{article}"]
)
def test_a_singleton_may_say_which_arguments_count(world: World, singleton: Any) -> None:
    task = world.task(order, singleton=singleton)

    assert task.delay("x", express=True).id == task.delay("x").id
    assert task.delay("y").id != task.delay("x").id
    (key, _) = execute(world.store, "select key from durable.once order by key")
    assert key["key"] == "article-x"


def test_a_debounced_task_runs_once_with_the_last_arguments_after_the_last_call(
    world: World, store: Store
) -> None:
    task = world.task(order)
    first = task.apply_async(("x",), debounce_key="k", debounce=60).id
    move_clock(store, "50 seconds")
    with delivering(store) as later:
        again = later.task(order, name=task.name)
        assert again.apply_async(("y", True), debounce_key="k", debounce=60).id == first
    (run,) = execute(
        store, "select state, extract(epoch from due - created_at)::int as seconds from durable.run"
    )
    assert (run["state"], run["seconds"]) == ("waiting", 110)

    move_clock(store, "111 seconds")
    with delivering(store) as later, store.connections.dedicated() as connection:
        assert [one.id for one in store.keeper(connection).wake(10)] == [first]
        again = later.task(order, name=task.name)
        later.deliver(first)
        assert done == [("y", True)]
        assert again.apply_async(("z",), debounce_key="k", debounce=60).id != first


def test_a_debounced_run_waits_at_most_as_long_as_it_may(world: World, store: Store) -> None:
    task = world.task(order)
    task.apply_async(("x",), debounce_key="k", debounce=60, debounce_max=90)
    move_clock(store, "50 seconds")
    with delivering(store) as later:
        later.task(order, name=task.name).apply_async(("y",), debounce_key="k", debounce=60, debounce_max=90)

    (run,) = execute(store, "select extract(epoch from due - created_at)::int as seconds from durable.run")
    assert run["seconds"] == 90


def test_a_debounced_run_is_where_its_last_call_sends_it(world: World, store: Store) -> None:
    task = world.task(order)
    for article, queue in (("x", "first"), ("y", "last")):
        task.apply_async((article,), debounce_key="k", debounce=60, queue=queue, priority=len(queue))

    (run,) = execute(store, "select queue, priority, message from durable.run")
    assert json.loads(bytes(run["message"]))["routing_key"] == run["queue"] == "last"
    assert run["priority"] == 4


def test_a_call_that_meets_a_debounced_run_just_being_woken_starts_the_next_one(world: World) -> None:
    """Its arguments must not be lost with a run that has begun without them."""
    task = world.task(order)
    first = task.apply_async(("x",), debounce_key="k", debounce=60).id
    with open_transaction(world.store) as waking:
        waking.execute(
            "update durable.run set state = 'pending', reason = null, published_at = now() where id = %s",
            (first,),
        )
        second = background(lambda: task.apply_async(("y",), debounce_key="k", debounce=60).id)
        wait_until_blocked(world.store)

    assert second.result(10) != first
    bodies = execute(world.store, "select convert_from(body, 'utf8') as body from durable.run order by key")
    assert ['"x"' in bodies[0]["body"], '"y"' in bodies[1]["body"]] == [True, True]


def test_debouncing_at_the_same_moment_makes_one_run(world: World) -> None:
    task = world.task(order)

    ids = together(*(lambda: task.apply_async(("x",), debounce_key="k", debounce=60).id for _ in range(8)))

    assert len(set(ids)) == 1


def test_a_key_in_a_body_is_remembered_whatever_becomes_of_it(world: World) -> None:
    """A replay gets the same run, also when the key has another one by then."""
    child = world.task(order)
    elsewhere = child.apply_async(("x",), idempotency_key="k").id
    seen: list[str] = []

    def parent(self: Any) -> None:
        seen.append(child.apply_async(("x",), idempotency_key="k").id)
        if len(seen) == 1:
            execute(world.store, "delete from durable.once")
            raise self.retry(countdown=0)

    run_id = world.task(parent, bind=True).delay().id
    world.deliver(run_id)
    world.deliver(run_id)

    assert seen == [elsewhere, elsewhere]
    assert count(world.store) == 2


def test_a_key_in_a_body_starts_a_child_with_an_id_of_its_own_run(world: World) -> None:
    child = world.task(order, singleton=True)
    seen: list[str] = []

    def parent() -> None:
        seen.extend(child.delay("x").id for _ in range(2))

    run_id = world.run(world.task(parent))

    assert seen[0] == seen[1]
    assert Runs(world.app).get(seen[0]).parent == run_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": 5}, "name one of"),
        ({"idempotency_key": "a", "debounce_key": "b", "debounce": 1}, "name one of"),
        ({"idempotency_key": "a", "debounce": 1}, "debounce has no meaning beside idempotency_key"),
        ({"idempotency_key": ""}, "not a printable text"),
        ({"idempotency_key": 7}, "not a printable text"),
        ({"idempotency_key": "a", "ttl": -1}, "not a positive length of time"),
        ({"idempotency_key": "a", "ttl": "soon"}, "not a positive length of time"),
        ({"debounce_key": "a"}, "needs debounce="),
        (
            {"debounce_key": "a", "debounce": 60, "debounce_max": 5},
            "debounce_max = 5 is shorter than debounce",
        ),
        ({"throttle_key": "a"}, "needs throttle="),
        ({"idempotency_key": "a", "transaction": object()}, "a transaction of its own"),
        ({"debounce_key": "a", "debounce": 5, "countdown": 5}, "leave countdown and eta away"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    world: World, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(durable.ConfigurationError, match=message):
        world.task(order).apply_async(("x",), **options)
    assert count(world.store) == 0


def test_a_singleton_that_cannot_be_made_of_the_arguments_is_refused(world: World) -> None:
    with pytest.raises(durable.ConfigurationError, match="cannot be made of the arguments"):
        world.task(order, singleton="{customer}").delay("x")
    with pytest.raises(durable.ConfigurationError, match="not a printable text"):
        world.task(order, singleton=lambda article: article).delay("\n")


@pytest.mark.parametrize("kind", ["group", "chord", "chain", "link"])
@pytest.mark.parametrize("key", ["singleton", "idempotency"])
def test_what_would_wait_for_ever_for_a_run_that_is_another_one_is_refused(
    world: World, kind: str, key: str
) -> None:
    task = world.task(order, singleton=key == "singleton")
    options = {} if key == "singleton" else {"idempotency_key": "k"}
    after = world.task(order)
    made = {
        "group": lambda: celery.group([task.s("x").set(**options), after.s("y")]).apply_async(),
        "chord": lambda: celery.chord([task.s("x").set(**options), after.s("y")], after.s()).apply_async(),
        "chain": (task.s("x").set(**options) | after.s()).apply_async,
        "link": lambda: task.apply_async(("x",), link=after.s(), **options),
    }[kind]
    made()  # the key is free: this is its run
    (holder,) = execute(world.store, "select run from durable.once")

    with pytest.raises(
        durable.RunStateError, match=f"stands for the run {holder['run']}, so this call starts"
    ):
        made()


def test_what_is_debounced_brings_its_chain_along_and_is_no_member_of_a_group(world: World) -> None:
    task, after = world.task(order), world.task(order)
    options = {"debounce_key": "k", "debounce": 60}
    for article in "xy":
        (task.s(article).set(**options) | after.s()).apply_async()

    assert count(world.store) == 1
    with pytest.raises(durable.ConfigurationError, match="cannot be debounced"):
        celery.group([task.s("x").set(**options), after.s("y")]).apply_async()


@pytest.mark.parametrize(
    "options",
    [{"idempotency_key": "k"}, {"throttle_key": "k", "throttle": 5}, {"debounce_key": "k", "debounce": 5}],
    ids=["idempotency", "throttle", "debounce"],
)
def test_a_child_that_names_a_key_is_refused(world: World, options: dict[str, Any]) -> None:
    """Its parent waits for this very run."""
    child = world.task(order)

    def parent() -> None:
        durable.call(child.s("x").set(**options))

    run_id = world.run(world.task(parent))

    assert "has an id of its own" in (Runs(world.app).get(run_id).error or "")


def test_an_eager_task_ignores_keys(world: World) -> None:
    world.app.conf.task_always_eager = True
    task = world.task(order, singleton=True)

    assert task.apply_async(("x",), idempotency_key="k").get() == "x"
    assert task.delay("x").get() == "x"
