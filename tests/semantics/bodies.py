"""Bodies for outcomes, canvas and ways of calling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from celery.contrib.abortable import AbortableTask
from celery.exceptions import Ignore, Reject
from harness.waiting import eventually, take
from pydantic import BaseModel

from semantics.journal import note, noted
from semantics.registry import Requested, Shouting, both, gates, kind_of, sibling

if TYPE_CHECKING:
    from celery import Task


class OddError(Exception):
    """An exception whose arguments are not its message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class Order(BaseModel):
    """What a pydantic task takes and returns."""

    item: str
    count: int = 1


# -- outcomes ---------------------------------------------------------------------------------------------


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


@both(bind=True, throws=(KeyError,), autoretry_for=(KeyError,), retry_backoff=False, default_retry_delay=0.1)
def throw_and_retry(self: Task, how: str) -> int:
    if self.request.retries < 1 and how == "by itself":
        raise KeyError(how)
    if self.request.retries < 1:
        raise self.retry(exc=KeyError(how), countdown=0.1)
    return int(self.request.retries)


@both(bind=True, mixin=AbortableTask)
def abortable(self: Task, patience: float) -> str:
    note("waiting", self.request.id)
    eventually(self.is_aborted, timeout=patience)
    return "aborted"


@both(bind=True, mixin=Requested)
def requested(self: Task) -> str:
    return "accepted"


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
    if not noted("rejected", self.request.id):
        note("rejected", self.request.id)
        raise Reject("by hand", requeue=requeue)
    return "accepted"


@both(bind=True)
def progress(self: Task) -> str:
    self.update_state(state="PROGRESS", meta={"done": 1})
    gates().pass_through(f"progress-{kind_of(self)}")
    return "done"


@both(bind=True)
def about(self: Task, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return describe(self)


def describe(task: Task) -> dict[str, Any]:
    """Return what a body can read of its request."""
    request = task.request
    names = (
        *(
            "id",
            "root_id",
            "parent_id",
            "group",
            "group_index",
            "retries",
            "correlation_id",
            "args",
            "kwargs",
        ),
        *(
            "timelimit",
            "eta",
            "expires",
            "stamps",
            "stamped_headers",
            "called_directly",
            "is_eager",
            "argsrepr",
            "shadow",
            "task",
        ),
    )
    found = {name: getattr(request, name, None) for name in names}
    info = request.delivery_info or {}
    found["priority"], found["routing_key"] = info.get("priority"), info.get("routing_key")
    found["own_header"] = request.get("own")
    found["state"] = task.AsyncResult(request.id).state if request.id and not request.is_eager else None
    return found


@both(bind=True)
def wait(self: Task, gate: str) -> str:
    note("waiting", self.request.id)
    gates().pass_through(gate)
    return "passed"


# -- canvas -----------------------------------------------------------------------------------------------


@both(bind=True)
def record(self: Task, *args: Any, **kwargs: Any) -> Any:
    note("recorded", self.request.id, [list(args), kwargs])
    return list(args)


@both()
def errback(request: Any, error: Any, trace: Any) -> None:
    note("errback", request.id, [type(error).__name__, str(error), bool(trace)])


@both()
def old_errback(task_id: str) -> None:
    note("old_errback", task_id)


@both()
def total(numbers: list[int]) -> int:
    return sum(numbers)


@both(bind=True)
def ids(self: Task, *_: Any) -> list[str | None]:
    return [self.request.id, self.request.parent_id, self.request.root_id]


@both(bind=True)
def starts(self: Task, number: int) -> list[str]:
    return [sibling(self, "add").delay(n, n).id for n in range(number)]


@both(bind=True)
def replace(self: Task, by: str) -> Any:
    gates().pass_through(f"replace-{self.request.id}")
    return self.replace(_REPLACEMENTS[by](self))


@both(bind=True)
def adds_to_chord(self: Task, number: int) -> int:
    self.add_to_chord(sibling(self, "add").s(number, number))
    return 0


def _another_kind(self: Task) -> Any:
    other = "plain" if kind_of(self) == "durable" else "durable"
    return self.app.tasks[f"{other}.add"].s(2, 3)


def _chain(self: Task) -> Any:
    one = sibling(self, "add")
    return chain(one.s(1, 1), one.s(2), one.s(3))


def _group(self: Task) -> Any:
    return group(sibling(self, "add").s(n, n) for n in (1, 2))


def _chord(self: Task) -> Any:
    return chord(_group(self), sibling(self, "total").s())


def _failing_chain(self: Task) -> Any:
    one = sibling(self, "add")
    return chain(one.s(1, 1), sibling(self, "fail").si("in the chain"), one.s(1))


_REPLACEMENTS = {
    "task": lambda self: sibling(self, "add").s(2, 3),
    "another kind": _another_kind,
    "chain": _chain,
    "group": _group,
    "chord": _chord,
    "failing": lambda self: sibling(self, "fail").s("replaced"),
    "failing chain": _failing_chain,
    "itself": lambda self: sibling(self, "replace").s("task"),
}

# -- ways of calling --------------------------------------------------------------------------------------


@both(pydantic=True)
def order(wanted: Order, extra: int = 0) -> Order:
    return Order(item=wanted.item, count=wanted.count + extra)


@both(mixin=Shouting, bind=True)
def shouting(self: Task, value: int) -> int:
    return value


@both(soft_time_limit=0.5, time_limit=20)
def slow(seconds: float) -> str:
    take(seconds)
    return "slept"
