"""What the soak executes beside the harness' tasks: each kind of control flow, with a trace of what ran."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import current_app
from harness.tasks import entry, take_back, work, work_later
from harness.waiting import take

import celery_durable as durable

if TYPE_CHECKING:
    from celery import Celery
    from harness.setup import Setup

LIMIT = 2
"""How many runs of one concurrency key may be executed at a time."""
_folders: list[Path] = []


def tries_of(run: str, key: str) -> Path:
    """Return the file that has a byte for each start of a step's body."""
    return _folders[-1] / f"{run}-{key}"


@durable.step(max_retries=8, default_retry_delay=0.05, retry_backoff=False)
def wobbly(failures: int) -> str:
    """Fail some times before it succeeds."""
    run = durable.current_run()
    key = durable.idempotency_key().rpartition("/")[2]
    with tries_of(run.id, key).open("ab") as file:
        file.write(b".")
    if tries_of(run.id, key).stat().st_size <= failures:
        message = f"{key} wobbles"
        raise ConnectionError(message)
    return f"{failures} overcome"


def stubborn(failures: list[int]) -> list[str]:
    """Do steps that are retried."""
    return [wobbly(count) for count in failures]


def rest(seconds: list[float]) -> list[str]:
    """Sleep between steps."""
    done = [work.options(name="rest")("rest")]
    for one in seconds:
        durable.sleep(one)
        done.append(work.options(name="rest")("rest"))
    return done


def ask(names: list[str]) -> list[Any]:
    """Wait for signals, one after the other."""
    return [durable.wait_for_signal(name) for name in names]


def leaf(number: int) -> int:
    """Be a child."""
    work.options(name="leaf")("leaf")
    return number


def branch(numbers: list[int]) -> int:
    """Have children of one's own."""
    return sum(durable.map(current_app.tasks["leaf"], numbers, max_concurrency=2))


def tree(width: int) -> list[Any]:
    """Have children, their children, one at a time and several."""
    leaves = durable.gather(*(current_app.tasks["leaf"].s(number) for number in range(width)))
    branches = durable.map(current_app.tasks["branch"], [leaves, leaves])
    return [leaves, branches, durable.call(current_app.tasks["plain_leaf"].s(7))]


def plain_leaf(number: int) -> int:
    """Be a plain Celery task."""
    return number


def breakable(number: int, name: str) -> int:
    """Fail for good until somebody has mended what it needs."""
    work.options(name="leaf")("leaf")
    if number == 1 and not tries_of(name, "mended").exists():
        raise durable.Fatal("to be mended")
    return number


def mending(name: str) -> list[int]:
    """Have children, one of which fails until it is mended; fail with it, and be resumed."""
    child = current_app.tasks["breakable"]
    return durable.gather(*(child.s(number, name) for number in range(3)))


def trip(names: list[str], then: str) -> list[str]:
    """Do what can be taken back; then fail, or sleep until it is cancelled."""
    done = []
    for name in names:
        done.append(work.options(name=name)(name))
        durable.on_rollback(take_back, name)
    if then == "fail":
        raise durable.Fatal("no way on")
    durable.sleep(days=1)
    return done


def account(names: list[str]) -> list[str]:
    """Make entries in a table, exactly one for each."""
    return [entry.options(name=name)(entry_name(name), 0.0) for name in names]


def entry_name(name: str) -> str:
    """Return what an entry's gate is called: there is none."""
    return f"{name}-entry"


def shared(seconds: float) -> str:
    """Be one of those of which only so many are executed at a time."""
    work.options(name="shared")("shared")
    take(seconds)
    return "had a slot"


def endless(left: int) -> str:
    """Begin anew until nothing is left."""
    work.options(name="turn")(f"turn {left}")
    if left:
        durable.continue_as(left - 1)
    return "at an end"


@durable.step
def told(what: list[str]) -> list[str]:
    """Keep what the body says: at a replay it has to say the same."""
    return what


async def weave(names: list[str], seconds: list[float], rest: float) -> list[str]:
    """Let branches meet in a queue and at a lock, in any order; leave the worker with the lock held."""
    lock, arrived = asyncio.Lock(), asyncio.Queue[str]()

    async def produce(name: str, spin: float) -> None:
        await work_later.options(name="spin")("spin", spin)
        await arrived.put(name)
        async with lock:
            await work_later.options(name="held")("held")
            durable.sleep(rest)
        await work_later.options(name="free")("free", spin)

    async def consume() -> list[str]:
        met: list[str] = []
        while len(met) < len(names):
            met.append(await arrived.get())
            told(met)
        return met

    producers = [produce(name, spin) for name, spin in zip(names, seconds, strict=True)]
    *_, met = await asyncio.gather(*producers, consume())
    return sorted(met)


async def hurried(patience: float, seconds: list[float]) -> str:
    """Give several steps little time, rest, and do the same again."""
    for spin in seconds:
        steps = [work_later.options(name="raced")("raced", spin * share) for share in (0.5, 1.0)]
        try:
            done = await asyncio.wait_for(asyncio.gather(*steps), patience)
        except (TimeoutError, asyncio.TimeoutError):  # two errors up to Python 3.10
            done = ["too late"]
        told(done)
        durable.sleep(0.2)
    return "hurried"


def register(setup: Setup) -> Celery:
    """Return the harness' app with these tasks."""
    folder = Path(setup.folder) / "tries"
    folder.mkdir(exist_ok=True)
    _folders.append(folder)
    app = setup.app()
    soon = {"retry_backoff": False, "retry_jitter": False, "default_retry_delay": 0.3}
    at_once = {"autoretry_for": ()}
    for task in (stubborn, rest, ask, leaf, branch, tree, account, endless, weave, hurried):
        app.task(task, name=task.__name__, **soon)
    for task in (breakable, mending, trip):
        app.task(task, name=task.__name__, **at_once)
    app.task(shared, name="shared", concurrency_key="soak", concurrency_limit=LIMIT, **soon)
    app.task(plain_leaf, name="plain_leaf", base=app.Task.__mro__[2], ignore_result=True)
    return app
