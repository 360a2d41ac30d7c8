"""A plain task as a child does what it does when a message of its own is executed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, chain, group, signature
from celery.exceptions import Ignore
from delivering import World, delivering, drain
from inspecting import execute

import celery_durable as durable
from celery_durable import plain
from celery_durable.children import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery_durable.store import Store

seen: list[Any] = []


class Hooked(Task):  # type: ignore[type-arg]
    """Writes down what Celery calls, and with what."""

    abstract = True
    broken: tuple[str, ...] = ()

    def _see(self, hook: str, *given: Any) -> None:
        told = [one if isinstance(one, (str, list, dict, int)) else type(one).__name__ for one in given]
        assert self.request.id == given[{"before_start": 0, "after_return": 2}.get(hook, 1)]
        assert self.app.current_task is self
        self.request.hooks = [*(self.request.get("hooks") or []), hook]
        seen.append((hook, *(one for one in told if one != self.request.id)))
        if hook in self.broken:
            message = f"{hook} is broken"
            raise ValueError(message)

    def before_start(self, *given: Any) -> None:
        self._see("before_start", *given)

    def on_success(self, *given: Any) -> None:
        self._see("on_success", *given)

    def on_retry(self, *given: Any) -> None:
        self._see("on_retry", *given)

    def on_failure(self, *given: Any) -> None:
        self._see("on_failure", *given)

    def after_return(self, *given: Any) -> None:
        self._see("after_return", *given)
        seen.append(self.request.hooks)


def double(number: int) -> int:
    seen.append(number)
    return 2 * number


def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        plain.register(made.app)
        yield made


def told(world: World, called: Callable[[], Any]) -> Any:
    """Return what a parent is told that calls a signature."""

    def parent() -> Any:
        try:
            return durable.call(called())
        except Exception as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"

    run_id = world.run(world.task(parent))
    drain(world)
    return world.result(run_id)


def child_of(world: World, *columns: str) -> tuple[Any, ...]:
    (row,) = execute(world.store, f"select {', '.join(columns)} from durable.run where wait is not null")
    return tuple(row.values())


def outcomes(world: World) -> list[str]:
    sql = (
        "select a.outcome from durable.attempt a join durable.run r on r.key = a.run_key"
        " where r.wait is not null order by a.number"
    )
    return [row["outcome"] for row in execute(world.store, sql)]


# -- replaced -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Task, durable.DurableTask], ids=["plain", "durable"])
def test_a_plain_child_may_be_replaced_by_another_task(world: World, base: type) -> None:
    other = world.task(double, base=base)

    def steps_aside(self: Any) -> None:
        raise self.replace(other.s(21))

    task = world.task(steps_aside, base=Task, bind=True)

    assert told(world, task.s) == 42
    assert outcomes(world) == ["replaced", "succeeded"]
    assert child_of(world, "task") == (PLAIN if base is Task else other.name,)


def test_a_plain_child_may_replace_itself_again_and_again(world: World) -> None:
    def countdown(self: Any, number: int, *, retried: bool = False) -> str:
        seen.append((number, retried, self.request.retries))
        if not retried:
            raise self.retry(kwargs={"retried": True}, countdown=0)
        if number:
            raise self.replace(self.s(number - 1))
        return "lift-off"

    task = world.task(countdown, base=Task, bind=True, name="countdown")

    assert told(world, lambda: task.s(1)) == "lift-off"
    assert seen == [(1, False, 0), (1, True, 1), (0, False, 0), (0, True, 1)]


@pytest.mark.parametrize(
    ("canvas", "result"),
    [
        (lambda task: chain(task.s(1), task.s()), 4),
        (lambda task: group([task.s(1), task.s(2)]) | task.app.tasks["total"].s(), 6),
    ],
    ids=["chain", "chord"],
)
def test_a_plain_child_may_be_replaced_by_a_canvas(world: World, canvas: Any, result: Any) -> None:
    other = world.task(double)
    world.task(total, name="total")

    def steps_aside(self: Any) -> None:
        raise self.replace(canvas(other))

    task = world.task(steps_aside, base=Task, bind=True)

    assert told(world, task.s) == result


def test_the_error_of_what_replaced_a_plain_child_is_its_parents(world: World) -> None:
    def fails() -> None:
        message = "no"
        raise LookupError(message)

    other = world.task(fails, base=Task)

    def steps_aside(self: Any) -> None:
        raise self.replace(other.s())

    task = world.task(steps_aside, base=Task, bind=True)

    assert told(world, task.s) == "LookupError: no"


def test_a_link_of_a_plain_child_follows_what_replaced_it(world: World) -> None:
    other = world.task(double, base=Task)
    follower = world.task(double)

    def steps_aside(self: Any) -> None:
        raise self.replace(other.s(1))

    task = world.task(steps_aside, base=Task, bind=True)

    assert told(world, lambda: task.s().set(link=follower.s())) == 2
    assert seen == [1, 2]


def test_a_plain_child_that_sends_itself_elsewhere_by_hand_is_replaced(world: World) -> None:
    other = world.task(double, base=Task)

    def by_hand(self: Any) -> None:
        other.apply_async((4,), task_id=self.request.id)
        raise Ignore

    assert told(world, world.task(by_hand, base=Task, bind=True).s) == 8


def test_a_durable_task_that_its_parents_worker_does_not_know_runs_as_itself(world: World) -> None:
    """A deploy is under way: the parent's worker has not the child's module yet."""

    @durable.step
    def work() -> str:
        seen.append("work")
        return "worked"

    def new(self: Any) -> str:
        done = work()
        if not self.request.retries:
            raise self.retry(countdown=0)
        return f"{done} in {durable.current_run().task}"

    def parent() -> Any:
        return durable.call(signature("new", app=world.app))

    run_id = world.run(world.task(parent))
    world.task(new, name="new", bind=True)
    drain(world)

    assert world.result(run_id) == "worked in new"
    assert seen == ["work"]


# -- retried ------------------------------------------------------------------------------------------------


def test_a_plain_child_is_retried_with_the_arguments_and_options_it_asks_for(world: World) -> None:
    def climbs(self: Any, number: int, *, by: int = 1) -> Any:
        seen.append((number, by, self.request.retries))
        if number < 3:
            raise self.retry(args=(number + 1,), countdown=0)
        if by < 5:
            raise self.retry(kwargs={"by": 5}, countdown=0, queue="elsewhere", headers={"own": "header"})
        return [number, by, self.request.headers["own"]]

    task = world.task(climbs, base=Task, bind=True)

    assert told(world, lambda: task.s(1)) == [3, 5, "header"]
    assert seen == [(1, 1, 0), (2, 1, 1), (3, 1, 2), (3, 5, 3)]
    assert child_of(world, "queue") == ("elsewhere",)


@pytest.mark.parametrize("afterwards", ["returns", "raises", "catches it"])
def test_a_plain_child_that_has_asked_for_a_retry_gets_it_whatever_it_does_then(
    world: World, afterwards: str
) -> None:
    def asks(self: Any) -> int:
        if not self.request.retries:
            try:
                self.retry(countdown=0, throw=afterwards == "catches it")
            except Exception:  # noqa: BLE001
                return 100
            if afterwards == "raises":
                raise ValueError
        return self.request.retries

    assert told(world, world.task(asks, base=Task, bind=True).s) == 1
    assert outcomes(world) == ["retry", "succeeded"]


def test_a_plain_child_that_retries_with_arguments_it_does_not_take_fails_with_the_reason(
    world: World,
) -> None:
    def asks(self: Any) -> None:
        raise self.retry(args=(1, 2), countdown=0)

    error = told(world, world.task(asks, base=Task, bind=True).s)

    assert error.startswith("TypeError: ")
    assert "takes 1 positional argument" in error
    assert outcomes(world) == ["failed"]


def test_an_error_that_no_retry_mends_is_not_retried_by_a_plain_child_either(world: World) -> None:
    def gives_up() -> None:
        message = "for good"
        raise durable.Fatal(message)

    task = world.task(gives_up, base=Task, autoretry_for=(Exception,))

    assert told(world, task.s) == "Fatal: for good"
    assert outcomes(world) == ["failed"]


# -- hooks --------------------------------------------------------------------------------------------------


def test_the_hooks_of_a_plain_child_are_called_as_celery_calls_them(world: World) -> None:
    def works(self: Any, number: int, *, more: int) -> int:
        if not self.request.retries:
            raise self.retry(exc=ValueError("no"), countdown=0)
        return number + more

    task = world.task(works, base=Hooked, bind=True)

    assert told(world, lambda: task.s(1, more=2)) == 3
    assert seen == [
        ("before_start", [1], {"more": 2}),
        ("on_retry", "ValueError", [1], {"more": 2}, "ExceptionInfo"),
        ("before_start", [1], {"more": 2}),
        ("on_success", 3, [1], {"more": 2}),
        ("after_return", "SUCCESS", 3, [1], {"more": 2}, "NoneType"),
        ["before_start", "on_success", "after_return"],
    ]


def test_the_hooks_of_a_plain_child_that_fails_are_called(world: World) -> None:
    def fails() -> None:
        message = "no"
        raise LookupError(message)

    assert told(world, world.task(fails, base=Hooked).s) == "LookupError: no"
    assert seen == [
        ("before_start", [], {}),
        ("on_failure", "LookupError", [], {}, "ExceptionInfo"),
        ("after_return", "FAILURE", "LookupError", [], {}, "NoneType"),
        ["before_start", "on_failure", "after_return"],
    ]


@pytest.mark.filterwarnings("ignore:Exception raised outside body:RuntimeWarning")  # Celery before 5.7
@pytest.mark.parametrize(
    ("broken", "result"), [("before_start", "ValueError: before_start is broken"), ("on_success", 2)]
)
def test_a_broken_hook_of_a_plain_child_does_what_celery_has_it_do(
    world: World, broken: str, result: Any
) -> None:
    task = world.task(double, base=Hooked, broken=(broken,))

    assert told(world, lambda: task.s(1)) == result
    assert any(entry[0] == broken for entry in seen if isinstance(entry, tuple))


def test_a_plain_child_is_called_as_its_class_says(world: World) -> None:
    class Doubled(Task):  # type: ignore[type-arg]
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(*args, **kwargs)

    def own_id(self: Any) -> str:
        return str(self.request.id)

    task = world.task(own_id, base=Doubled, bind=True)

    assert told(world, task.s) == 2 * child_of(world, "id")[0]


def test_an_error_that_a_plain_child_expects_is_logged_as_such(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        message = "no"
        raise LookupError(message)

    with caplog.at_level(logging.INFO, "celery.app.trace"):
        assert told(world, world.task(fails, base=Task, throws=(LookupError,)).s) == "LookupError: no"

    assert [record.levelname for record in caplog.records if "raised" in record.message] == ["INFO"]


# -- called -------------------------------------------------------------------------------------------------


def test_a_plain_child_is_sent_by_its_own_apply_async(world: World) -> None:
    class OfTenants(Task):  # type: ignore[type-arg]
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            headers = {**(options.pop("headers", None) or {}), "tenant": "acme"}
            return super().apply_async(args, {**(kwargs or {}), "more": 2}, headers=headers, **options)

    def works(self: Any, number: int, more: int = 0) -> Any:
        return [number, more, self.request.headers["tenant"]]

    task = world.task(works, base=OfTenants, bind=True)

    assert told(world, lambda: task.s(1)) == [1, 2, "acme"]


def test_arguments_that_a_plain_child_does_not_take_are_refused_where_it_is_called(world: World) -> None:
    task = world.task(double, base=Task)

    assert "missing 1 required positional argument" in told(world, task.s)
    assert not execute(world.store, "select 1 from durable.run where wait is not null")


def test_a_plain_child_sees_the_request_that_a_message_of_its_own_would_bring(world: World) -> None:
    def looks(self: Any, number: int) -> Any:
        request = self.request
        seen.append((request.root_id, request.parent_id))
        return [request.task, request.args, request.argsrepr, request.timelimit, request.headers["own"]]

    task = world.task(looks, base=Task, bind=True, time_limit=30)
    chosen = {"soft_time_limit": 20, "headers": {"own": "header"}}

    assert told(world, lambda: task.s(1).set(**chosen)) == [task.name, [1], "(1,)", [30, 20], "header"]
    assert seen == [child_of(world, "root", "parent")]


def test_what_a_plain_child_starts_is_among_the_children_of_its_run(world: World) -> None:
    other = world.task(double)

    def starts() -> str:
        return str(other.delay(1).id)

    started = told(world, world.task(starts, base=Task).s)

    (run_id,) = child_of(world, "id")
    assert [one.id for one in world.app.AsyncResult(run_id).children] == [started]
