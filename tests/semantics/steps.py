"""Runs that call steps, each other's functions and each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import celery_durable as durable
from semantics.journal import note
from semantics.registry import WitnessedTask

if TYPE_CHECKING:
    from celery import Celery, Task


@durable.step
def doubled(number: int) -> int:
    note("step", durable.current_run().id, durable.idempotency_key().partition("/")[2])
    return number * 2


def inner(number: int) -> int:
    """Do one step."""
    return doubled(number)


def outer(self: Task, number: int) -> Any:
    """Do a step, call another task's function, start that task; and all of it again in a retry."""
    called: Any = self.app.tasks["inner"]
    first, second = doubled(number), called(number + 1)
    children = [called.delay(number + 2).id, called.delay(number + 3).id]
    if not self.request.retries:
        raise self.retry(countdown=0)
    return [first, second, children]


def register(app: Celery) -> None:
    """Give an app these tasks."""
    app.task(inner, name="inner", base=WitnessedTask)
    app.task(outer, name="outer", base=WitnessedTask, bind=True)
