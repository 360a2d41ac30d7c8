"""`async def` tasks where there is no worker: called, awaited, applied eagerly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from celery import Celery

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Iterator


@durable.step
async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


class Order(pydantic.BaseModel):
    """Arguments and result of a task."""

    number: int


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery(
        "awaits",
        broker="memory://",
        backend="durable+postgresql://localhost:1/away",
        task_cls=durable.DurableTask,
    )
    made.conf.task_always_eager = True
    yield made
    made.close()


def task_of(app: Celery, **options: Any) -> Any:
    async def doubled(number: int) -> int:
        if number < 0:
            message = "negative"
            raise ValueError(message)
        return await double(number)

    return app.task(doubled, name="doubled", **options)


@pytest.mark.parametrize("options", [{}, {"autoretry_for": ()}, {"autoretry_for": (OSError,)}])
def test_a_call_returns_what_python_returns_something_to_await(app: Celery, options: dict[str, Any]) -> None:
    task = task_of(app, **options)

    async def twice() -> int:
        return await task(1) + await task.run(2)

    assert asyncio.run(task(21)) == asyncio.run(task.run(21)) == 42
    assert asyncio.run(twice()) == 6
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(task(-1))


def test_applied_eagerly_it_is_awaited(app: Celery) -> None:
    task = task_of(app)

    assert task.delay(21).get() == task.apply((21,)).get() == 42
    with pytest.raises(ValueError, match="negative"):
        task.apply((-1,)).get()


def test_also_from_within_a_running_loop_and_from_another_async_task(app: Celery) -> None:
    task = task_of(app)

    async def outer() -> int:
        return int(task.delay(4).get(disable_sync_subtasks=False))

    assert asyncio.run(outer()) == 8
    assert app.task(outer, name="outer").delay().get() == 8


def test_its_own_retry_policy_holds_when_it_is_applied(app: Celery) -> None:
    tries: list[int] = []

    async def fails(self: Any) -> int:
        tries.append(self.request.retries)
        await asyncio.sleep(0)
        if len(tries) < 3:
            raise OSError("no")
        return len(tries)

    options: dict[str, Any] = {"retry_backoff": False, "default_retry_delay": 0, "max_retries": 3}
    task = app.task(fails, bind=True, name="fails", autoretry_for=(OSError,), **options)

    assert task.apply().get() == 3
    assert tries == [0, 1, 2]


def test_pydantic_models_go_in_and_out(app: Celery) -> None:
    async def order(one: Order) -> Order:
        return Order(number=await double(one.number))

    task = app.task(order, name="order", pydantic=True)

    assert task.delay({"number": 4}).get() == {"number": 8}
