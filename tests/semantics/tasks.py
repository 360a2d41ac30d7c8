"""The app: each body below is registered twice, as `plain.<name>` and as `durable.<name>`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery, Task, chain, chord, group
from celery.exceptions import Ignore, Reject, Retry
from harness.setup import Setup
from harness.waiting import take
from pydantic import BaseModel
from semantics.journal import Witness, note, open_journal

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("plain", "durable")


class OddError(Exception):
    """An exception whose arguments are not its message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class Order(BaseModel):
    """What a pydantic task takes and returns."""

    item: str
    count: int = 1


class PlainTask(Witness):
    """A plain Celery task that writes down what happens to it."""

    abstract = True
    track_started = True


class WitnessedTask(Witness, durable.DurableTask):
    """The durable counterpart."""

    abstract = True


class Shouting:
    """A custom task class with a `__call__` of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note("__call__", self.request.id)  # type: ignore[attr-defined]
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class Registry:
    """Registers bodies for both kinds."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.gates = Setup.of_environment().gates

    def both(self, *, mixin: type | None = None, **options: Any) -> Callable[[Callable[..., Any]], None]:
        """Register a function as a plain and as a durable task."""

        def register(function: Callable[..., Any]) -> None:
            for kind, base in (("plain", PlainTask), ("durable", WitnessedTask)):
                chosen = type(kind, (mixin, base), {"abstract": True}) if mixin else base
                own = function if not options.get("bind") else _bound(function, kind)
                self.app.task(own, name=f"{kind}.{function.__name__}", base=chosen, **options)

        return register


def _bound(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def body(self: Task, *args: Any, **kwargs: Any) -> Any:
        self.kind = kind
        return function(self, *args, **kwargs)

    body.__name__ = function.__name__
    return body


def make_app() -> Celery:
    """Return the app described by the environment."""
    setup = Setup.of_environment()
    app = Celery("semantics", broker=setup.broker, backend=setup.backend, task_cls=durable.DurableTask)
    app.conf.update(
        durable_auto_migrate=True,
        durable_autoretry=False,
        task_default_queue=setup.queue,
        task_send_sent_event=True,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        result_extended=True,
        result_chord_retry_interval=0.1,
        **setup.settings,
    )
    open_journal(setup.ledger)
    registry = Registry(app)
    for family in (_outcomes, _retries, _canvas, _calling):
        family(registry)
    return app


def _sibling(task: Task, name: str) -> Task:
    return task.app.tasks[f"{task.kind}.{name}"]


def _outcomes(registry: Registry) -> None:
    both, gates = registry.both, registry.gates

    @both()
    def add(x: int, y: int) -> int:
        return x + y

    @both()
    def echo(*args: Any, **kwargs: Any) -> Any:
        return [list(args), kwargs]

    @both()
    def fail(text: str) -> None:
        raise ValueError(text)

    @both()
    def fail_oddly() -> None:
        raise OddError(7, "odd")

    @both(throws=(KeyError,))
    def throw(key: str) -> None:
        raise KeyError(key)

    @both(ignore_result=True)
    def ignored(value: Any) -> Any:
        if value == "raise":
            raise ValueError(value)
        return value

    @both(bind=True)
    def ignore(self: Task, state: str | None = None) -> None:
        if state:
            self.update_state(state=state, meta={"by": "hand"})
        raise Ignore

    @both(bind=True)
    def reject(self: Task, requeue: bool) -> str:  # noqa: FBT001
        seen = registry.gates.path_of(f"seen-{self.request.id}")
        if not seen.exists():
            seen.touch()
            raise Reject("by hand", requeue=requeue)
        return "accepted"

    @both(bind=True)
    def progress(self: Task) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1})
        gates.pass_through(f"progress-{self.kind}")
        return "done"

    @both(bind=True)
    def about(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return describe(self)

    @both(bind=True)
    def wait(self: Task, gate: str) -> str:
        gates.pass_through(gate)
        return "passed"


def describe(task: Task) -> dict[str, Any]:
    """Return what a body can read of its request."""
    request = task.request
    info = request.delivery_info or {}
    names = ("id", "root_id", "parent_id", "group", "group_index", "retries", "correlation_id", "args", "kwargs")
    names += ("timelimit", "stamps", "stamped_headers", "called_directly", "is_eager", "argsrepr", "shadow", "task")
    found = {name: getattr(request, name, None) for name in names}
    found["priority"] = info.get("priority")
    found["routing_key"] = info.get("routing_key")
    found["own_header"] = (request.headers or {}).get("own") if request.headers else request.get("own")
    found["state"] = task.AsyncResult(request.id).state if request.id and not request.is_eager else None
    return found


def _retries(registry: Registry) -> None:
    both = registry.both

    @both(bind=True, max_retries=2)
    def retry(self: Task, how: str, value: int = 0) -> Any:
        note("body", self.request.id, [self.request.retries, value])
        return _RETRIES[how](self, value)

    @both(
        autoretry_for=(KeyError,), retry_backoff=False, retry_jitter=False, default_retry_delay=0, max_retries=2, bind=True
    )
    def auto(self: Task, failures: int, error: str = "KeyError") -> int:
        if self.request.retries < failures:
            raise {"KeyError": KeyError, "ValueError": ValueError, "Ignore": Ignore}[error](self.request.retries)
        return self.request.retries


def _delayed(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(countdown=0.2)
    return [self.request.retries, value]


def _changed(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(args=["changed", value + 1], kwargs={}, countdown=0)
    return [self.request.retries, value]


def _changed_keyword(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(kwargs={"value": value + 1}, countdown=0)
    return [self.request.retries, value]


def _exceeded(self: Task, value: int) -> Any:
    raise self.retry(countdown=0)


def _exceeded_with_error(self: Task, value: int) -> Any:
    raise self.retry(exc=LookupError(f"for value {value}"), countdown=0)


def _from_handler(self: Task, value: int) -> Any:
    try:
        raise OSError(value)
    except OSError as error:
        raise self.retry(exc=error, countdown=0, max_retries=1) from None


def _without_throw(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        self.retry(countdown=0, throw=False)
        return "first"
    return "second"


def _by_hand(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise Retry("by hand", when=0)
    return self.request.retries


def _rerouted(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(countdown=0, priority=3, headers={"own": "header"})
    return describe(self)


def _described(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(countdown=0)
    return describe(self)


_RETRIES = {
    "delayed": _delayed,
    "changed": _changed,
    "changed keyword": _changed_keyword,
    "exceeded": _exceeded,
    "exceeded with error": _exceeded_with_error,
    "from handler": _from_handler,
    "without throw": _without_throw,
    "by hand": _by_hand,
    "rerouted": _rerouted,
    "described": _described,
}


def _canvas(registry: Registry) -> None:
    both = registry.both

    @both(bind=True)
    def record(self: Task, *args: Any, **kwargs: Any) -> Any:
        note("recorded", self.request.id, [list(args), kwargs])
        return list(args)

    @both(bind=True)
    def errback(self: Task, request: Any, error: Any, trace: Any) -> None:
        note("errback", request.id, [type(error).__name__, str(error), bool(trace)])

    @both(bind=True)
    def old_errback(self: Task, task_id: str) -> None:
        note("old_errback", task_id)

    @both()
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @both(bind=True)
    def replace(self: Task, by: str) -> Any:
        raise self.replace(_replacement(self, by))

    @both(bind=True)
    def ids(self: Task, *_: Any) -> list[str | None]:
        return [self.request.id, self.request.parent_id, self.request.root_id]

    @both(bind=True)
    def starts(self: Task, number: int) -> list[str]:
        return [_sibling(self, "add").delay(n, n).id for n in range(number)]


def _replacement(self: Task, by: str) -> Any:
    add, total, fail = (_sibling(self, name) for name in ("add", "total", "fail"))
    other = self.app.tasks["plain.add" if self.kind == "durable" else "durable.add"]
    return {
        "task": lambda: add.s(2, 3),
        "other kind": lambda: other.s(2, 3),
        "chain": lambda: chain(add.s(1, 1), add.s(2), add.s(3)),
        "group": lambda: group(add.s(1, 1), add.s(2, 2)),
        "chord": lambda: chord([add.s(1, 1), add.s(2, 2)], total.s()),
        "failing": lambda: fail.s("replaced"),
        "failing chain": lambda: chain(add.s(1, 1), fail.si("in the chain"), add.s(1)),
        "itself": lambda: _sibling(self, "replace").s("task"),
    }[by]()


def _calling(registry: Registry) -> None:
    both, app = registry.both, registry.app

    @both(pydantic=True)
    def order(wanted: Order, extra: int = 0) -> Order:
        return Order(item=wanted.item, count=wanted.count + extra)

    @both(mixin=Shouting, bind=True)
    def shouting(self: Task, value: int) -> int:
        return value

    @both(soft_time_limit=1, time_limit=20, bind=True)
    def slow(self: Task, seconds: float) -> str:
        take(seconds)
        return "slept"

    for kind, base in (("plain", PlainTask), ("durable", WitnessedTask)):
        app.register_task(type("Counting", (Counting, base), {"name": f"{kind}.counting"})())

    @durable.step
    def doubled(number: int) -> int:
        note("step", durable.idempotency_key(), number)
        return number * 2

    @app.task(name="inner", base=WitnessedTask)
    def inner(number: int) -> int:
        return doubled(number)

    @app.task(name="outer", base=WitnessedTask, bind=True, max_retries=1)
    def outer(self: Task, number: int) -> Any:
        first, second = doubled(number), inner(number + 1)
        child = inner.delay(number + 2)
        if not self.request.retries:
            raise self.retry(countdown=0)
        return [first, second, child.id]


class Counting(Task):
    """A class-based task with state of its own."""

    abstract = True

    def run(self, start: int, *, step: int = 1) -> int:
        """Return the next number."""
        return start + step
