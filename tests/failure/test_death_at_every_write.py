"""A worker that dies before or after any write of a task changes neither its result nor its effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Task, chain, chord, group
from sqlalchemy import text
from sqlalchemy.orm import Session  # noqa: TC002  (the step reads its annotation)

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

EFFECTS: list[str] = []  # each once for its idempotency key
TRIED: set[str] = set()
TASKS: dict[str, Any] = {}


def once(what: str) -> str:
    entry = f"{what} {durable.idempotency_key()}"
    if entry not in EFFECTS:
        EFFECTS.append(entry)
    return what


@durable.step
def act(what: str) -> str:
    return once(what)


@durable.step(max_retries=1, default_retry_delay=0)
def moody(what: str) -> str:
    once(f"{what} tried")
    if what not in TRIED:
        TRIED.add(what)
        raise ConnectionError(what)
    return what


@durable.transaction
def book(session: Session, what: str) -> str:
    session.execute(text("insert into booked values (:what)"), {"what": what})
    TASKS["leaf"].apply_async((what,), transaction=session)
    return what


def leaf(value: Any = None) -> str:
    return act("leaf") + str(value or "")


def straight() -> Any:
    return [act("one"), act("two"), str(durable.uuid4()), durable.random().random()]


def retried() -> str:
    return moody("moody")


def patient() -> str:
    durable.sleep(hours=1)
    act("slept")
    durable.sleep(hours=1)
    return act("slept again")


def asking() -> Any:
    return [durable.wait_for_signal("answer"), act("answered")]


def delegating() -> str:
    TASKS["leaf"].delay(act("before"))
    return act("after")


def booking() -> str:
    return book(act("to be booked"))


def replaced() -> Any:
    act("before the replacement")
    return TASKS["replaced"].replace(TASKS["leaf"].s("replaced"))


def failing() -> None:
    act("in vain")
    raise KeyError("no")


def gathering() -> Any:
    both = durable.gather(TASKS["leaf"].s("a"), TASKS["leaf"].s("b"))
    return [both, act("gathered")]


def compensated() -> None:
    durable.on_rollback(act, f"taken back {act('done')}")
    raise KeyError("no")


def plain(*values: Any) -> str:
    return f"plain {values}"


def restless(self: Any, *, retried: bool = False) -> None:
    if not retried:
        raise self.retry(kwargs={"retried": True}, countdown=0)
    raise self.replace(TASKS["plain"].s("instead"))


def calling_plain() -> str:
    return act(durable.call(TASKS["restless"].s()))


BODIES = (straight, retried, patient, asking, delegating, booking, replaced, failing, gathering, compensated)
FOLLOWERS: dict[str, Callable[[], Any]] = {
    "chain": lambda: chain(TASKS["leaf"].s("a"), TASKS["leaf"].s(), TASKS["plain"].s(), TASKS["leaf"].s()),
    "chord": lambda: chord([TASKS["leaf"].s("a"), TASKS["plain"].s("b")], TASKS["leaf"].s()),
    "group": lambda: group(TASKS["leaf"].s("a"), TASKS["leaf"].s("b")) | TASKS["plain"].s(),
    "links": lambda: TASKS["failing"].s().set(link_error=TASKS["plain"].s()),
}


@pytest.fixture(autouse=True)
def tasks(durable_app: Celery) -> Iterator[None]:
    for body in (leaf, calling_plain, *BODIES):
        options = {"name": f"dying.{body.__name__}", "shared": False, "max_retries": 0, "throws": (KeyError,)}
        TASKS[body.__name__] = durable_app.task(body, **options)
    TASKS["plain"] = durable_app.task(plain, name="dying.plain", shared=False, base=Task)
    TASKS["restless"] = durable_app.task(restless, name="dying.restless", shared=False, base=Task, bind=True)
    yield
    TASKS.clear()


@pytest.fixture
def world(durable_store: Any) -> Iterator[Any]:
    """Return a connection to the store's database, which has a table of the tasks' own."""
    with durable_store.connections.dedicated() as connection:
        connection.execute("create table booked (what text)")
        yield connection
        connection.execute("drop table booked")


def reset(world: Any) -> None:
    EFFECTS.clear()
    TRIED.clear()
    world.execute("delete from booked")


@pytest.mark.parametrize("body", BODIES)
def test_a_task_survives(
    crash_everywhere: Callable[..., list[str]], durable_app: Celery, world: Any, body: Callable[..., Any]
) -> None:
    def effects() -> Any:
        return sorted(EFFECTS), world.execute("select what from booked").fetchall()

    def answer(run_id: str) -> None:
        durable.send_signal(run_id, "answer", 42, app=durable_app)

    found = crash_everywhere(
        TASKS[body.__name__].s(), effects=effects, reset=lambda: reset(world), when_waiting=answer
    )

    assert len(found) > 1


def test_a_plain_child_that_is_retried_and_replaced_survives(
    crash_everywhere: Callable[..., list[str]], world: Any
) -> None:
    found = crash_everywhere(
        TASKS["calling_plain"].s(), effects=lambda: sorted(EFFECTS), reset=lambda: reset(world)
    )

    assert len(found) > 1
    assert len(EFFECTS) == 1
    assert EFFECTS[0].startswith("plain ('instead',) ")


@pytest.mark.parametrize("canvas", FOLLOWERS)
def test_what_follows_a_task_survives(
    crash_everywhere: Callable[..., list[str]], world: Any, canvas: str
) -> None:
    def effects() -> list[str]:
        return sorted(entry.partition(" ")[0] for entry in EFFECTS)  # ids of members are new each time

    found = crash_everywhere(FOLLOWERS[canvas](), effects=effects, reset=lambda: reset(world))

    assert len(found) > 1
