"""The two kinds of tasks, and how a body becomes one of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, Task

import celery_durable as durable
from semantics.journal import Witness, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.ledger import Gates

KINDS = ("plain", "durable")
_bodies: list[tuple[Callable[..., Any], type | None, dict[str, Any]]] = []
_gates: list[Gates] = []


class PlainTask(Witness):
    """A plain Celery task that writes down what happens to it."""

    abstract = True
    track_started = True


class WitnessedTask(Witness, durable.DurableTask):
    """The durable counterpart."""

    abstract = True


class Shouting:
    """A mixin with a `__call__` of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note("__call__", self.request.id)  # type: ignore[attr-defined]
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class Requested:
    """A mixin with a request class of its own."""

    @property
    def Request(self) -> str:  # noqa: N802  (Celery's name)
        return f"semantics.requests:{kind_of(self).title()}NotingRequest"  # type: ignore[arg-type]


class Counting(Task):
    """A class-based task."""

    abstract = True

    def run(self, start: int, *, step: int = 1) -> int:
        """Return the next number."""
        return start + step


def both(*, mixin: type | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let apps register a function as `plain.<name>` and as `durable.<name>`."""

    def remember(function: Callable[..., Any]) -> Callable[..., Any]:
        _bodies.append((function, mixin, options))
        return function

    return remember


def register(app: Celery, gates: Gates) -> None:
    """Give an app all tasks."""
    _gates.append(gates)
    for kind, base in (("plain", PlainTask), ("durable", WitnessedTask)):
        for function, mixin, options in _bodies:
            chosen = type(kind, (mixin, base), {"abstract": True}) if mixin else base
            app.task(function, name=f"{kind}.{function.__name__}", base=chosen, **options)
        app.register_task(type("Counting", (Counting, base), {"name": f"{kind}.counting"})())


def gates() -> Gates:
    """Return the gates of the app made last."""
    return _gates[-1]


def kind_of(task: Task) -> str:
    """Return `plain` or `durable`."""
    return str(task.name).partition(".")[0]


def sibling(task: Task, name: str) -> Task:
    """Return another task of the same kind."""
    return task.app.tasks[f"{kind_of(task)}.{name}"]
