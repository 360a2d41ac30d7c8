"""Options that are misspelt are refused with what must be meant; what is somebody's passes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, group
from celery.app.amqp import AMQP
from delivering import World, delivering
from kombu import Producer

import celery_durable as durable
from celery_durable import DurableTask, misspelt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


def order(article: str) -> str:
    return article


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("idempotancy_key", "idempotency_key"),
        ("idempotencyKey", "idempotency_key"),
        ("trottle_key", "throttle_key"),
        ("dead_line", "deadline"),
        ("concurrency_limitt", "concurrency_limit"),
        ("start_rat", "start_rate"),
        ("transactions", "transaction"),
    ],
)
def test_a_misspelt_option_of_a_call_is_refused_and_nothing_is_sent(
    world: World, option: str, meant: str
) -> None:
    task = world.task(order)
    for call in (
        lambda **options: task.apply_async(("a",), **options),
        lambda **options: task.s("a").set(**options).apply_async(),
        lambda **options: group(task.s("a"), task.s("b")).apply_async(**options),
    ):
        with pytest.raises(durable.ConfigurationError, match=f"{option!r}; did you mean {meant!r}"):
            call(**{option: "7"})
    assert list(durable.Runs(world.app).list().runs) == []


def test_a_misspelt_option_of_a_child_is_refused(world: World) -> None:
    task = world.task(order)

    def parent() -> Any:
        with pytest.raises(durable.ConfigurationError, match="did you mean 'deadline'"):
            durable.call(task.s("a").set(deadlin=5))

    world.result(world.run(world.task(parent)))


def test_what_celery_and_kombu_know_and_what_is_like_nothing_passes(world: World) -> None:
    known = {
        name
        for function in (Celery.send_task, AMQP.as_task_v2, Producer.publish, DurableTask.apply_async)
        for name in inspect.signature(function).parameters
    }
    misspelt.refuse_options("order", known - {"transaction"})

    world.task(order).apply_async(("a",), tenant="acme", headers={"a": 1})


@pytest.mark.parametrize(
    ("option", "meant"),
    [("singelton", "singleton"), ("concurrency_limitt", "concurrency_limit"), ("startrate", "start_rate")],
)
def test_a_misspelt_option_of_a_task_is_refused(option: str, meant: str) -> None:
    app = Celery("misspelt", task_cls=DurableTask, set_as_current=False)
    with pytest.raises(durable.ConfigurationError, match=f"no option {option!r}; did you mean {meant!r}"):
        app.task(order, lazy=False, **{option: True})


def test_attributes_that_a_base_class_has_are_the_users_own() -> None:
    app = Celery("misspelt", task_cls=DurableTask, set_as_current=False)

    class WithDeadlines(DurableTask):
        abstract = True
        deadlines: tuple[int, ...] = ()

    task: Any = app.task(order, lazy=False, base=WithDeadlines, deadlines=(5,), tenant="a")

    assert (task.deadlines, task.tenant) == ((5,), "a")


def test_looking_at_a_task_binds_no_class_but_its_own(world: World) -> None:
    """Else what one app is configured with would be every other one's default."""

    class Base(DurableTask):
        abstract = True

    world.app.task(order, base=Base, name="shop.order")
    assert world.app.tasks["shop.order"].serializer == "json"

    with Celery(
        "other", broker="memory://", backend=f"durable+{world.store.url}", set_as_current=False
    ) as other:
        other.conf.task_serializer = "pickle"
        other.task(order, base=Base, name="shop.order")
        assert other.tasks["shop.order"].serializer == "pickle"
    assert not vars(Base).get("__bound__")
