"""Bodies that raise, return or say what cannot be stored, and tasks that are odd around their bodies."""

from __future__ import annotations

import ast
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from kombu import serialization

import celery_durable as durable

if TYPE_CHECKING:
    from celery import Celery, Task
    from harness.ledger import Ledger

_ledgers: list[Ledger] = []

LITERAL = "literal"
"""A serializer that carries more than JSON, as pickle does, which root's workers refuse."""


def _literal(data: bytes | str) -> Any:
    return ast.literal_eval(data if isinstance(data, str) else data.decode())


serialization.register(LITERAL, repr, _literal, "application/x-literal", "utf-8")


class MuteError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        message = "no words"
        raise RuntimeError(message)


ERRORS: dict[str, Any] = {
    "has no text": MuteError,
    "text with a surrogate": lambda: ValueError("bad \udcff"),
    "text with a NUL": lambda: ValueError("bad \0"),
    "arguments of any kind": lambda: ValueError(object(), {1: object()}),
}

VALUES: dict[str, Any] = {
    "NUL": "a\0b",
    "surrogate": "\udcff",
    "NaN": float("nan"),
    "object": object(),
}


def note(event: str, name: str, detail: Any = None) -> None:
    """Write into the ledger."""
    _ledgers[-1].write(event, name, run=durable.current_run().id, detail=detail)


def raises(kind: str) -> None:
    note("body", "raises")
    error: Exception = ERRORS[kind]()
    raise error


def takes(value: Any, outcome: str) -> str:
    note("body", "takes", repr(value))
    if outcome == "raise":
        raise ValueError(value)
    return "taken"


@durable.step
def misspelled() -> None:
    message = "bad \udcff"
    raise ValueError(message)


def sees(self: Task[..., Any]) -> list[str]:
    """Catch what a step raised, at its first call and at its replay."""
    try:
        misspelled()
    except Exception as error:  # noqa: BLE001  (whatever it is)
        note("caught", "sees", [type(error).__name__, ascii(error)])
    if not self.request.retries:
        raise self.retry(countdown=0)
    return [entry.detail for entry in _ledgers[-1].entries("caught", run=self.request.id)]


def tells(what: str, kind: str) -> None:
    note("body", "tells")
    run = durable.current_run()
    if what == "tags":
        run.set_tags(odd=VALUES[kind])
    else:
        run.set_progress({"odd": VALUES[kind]})


def returns(size: int) -> str:
    note("body", "returns")
    return "x" * size


def spawns(self: Task[..., Any]) -> str:
    """Start a child; fail at the first execution."""
    child = self.app.tasks["plain"].delay("child").id
    note("child", "spawns", child)
    if _ledgers[-1].count("child", run=self.request.id) == 1:
        message = "not yet"
        raise durable.Fatal(message)
    return str(child)


def late(self: Task[..., Any]) -> str:
    """Start a child that was due a minute ago."""
    child = self.app.tasks["plain"].apply_async(("late",), eta=durable.now() - timedelta(minutes=1))
    return str(child.id)


def kept_apart(*, customer: int) -> int:
    """Share a slot with the others of a customer."""
    note("body", "kept_apart")
    return customer


@durable.step(at_most_once=True)
def once() -> str:
    return durable.now().isoformat()


@durable.step(max_retries=2, default_retry_delay=0)
def second_try() -> None:
    _ledgers[-1].write("try", "second_try", run=durable.current_run().id)
    if _ledgers[-1].count("try", run=durable.current_run().id) == 1:
        message = "first try"
        raise ConnectionError(message)


def moments(self: Task[..., Any]) -> list[str]:
    """Read the time before steps that are written twice; return it at the replay."""
    drawn = [durable.now().isoformat()]
    once()
    drawn.append(durable.now().isoformat())
    second_try()
    drawn.append(durable.now().isoformat())
    note("drawn", "moments", drawn)
    if not self.request.retries:
        raise self.retry(countdown=0)
    return drawn


class NeverReady(durable.DurableTask):
    """A task that fails in front of its body."""

    name = "never_ready"

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        _ledgers[-1].write("before_start", "never_ready", run=task_id)
        message = "not ready"
        raise ValueError(message)

    def run(self) -> str:
        """Never come this far."""
        note("body", "never_ready")
        return "ready"


class Silent(durable.DurableTask):
    """A task whose `apply_async` sends nothing."""

    name = "silent"

    def apply_async(self, *_: Any, **__: Any) -> Any:
        """Send nothing."""

    def run(self) -> str:
        """Never come this far."""
        note("body", "silent")
        return "heard"


def register(app: Celery, ledger: Ledger) -> None:
    """Give the app these tasks."""
    _ledgers.append(ledger)
    for function in (raises, takes):
        app.task(function, name=function.__name__, autoretry_for=())
    for function in (sees, spawns, late, moments):
        app.task(function, name=function.__name__, bind=True)
    soon = {"retry_backoff": False, "retry_jitter": False, "default_retry_delay": 0}
    for function in (tells, returns):
        app.task(function, name=function.__name__, **soon)
    app.task(kept_apart, name="kept_apart", concurrency_key="customer-{customer}", concurrency_limit=1)
    for odd in (NeverReady, Silent):
        of_this_app: Any = type(odd.__name__, (odd,), {})  # Celery binds the class to the app
        app.register_task(of_this_app())
