"""Tasks whose every effect is in the ledger, and whose every step stops at a gate when a test closes it."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from celery import Task, chain, current_app, group

import celery_durable as durable
from celery_durable.http import DurableTransport
from harness.waiting import take

if TYPE_CHECKING:
    from celery import Celery

    from harness.ledger import Gates, Ledger


@dataclass
class Here:
    """Where this process writes and waits."""

    ledger: Ledger
    gates: Gates
    app: Celery


_here: list[Here] = []


def _effect(name: str, seconds: float = 0.0) -> str:
    """Leave a trace, wait at the gate of this name, leave another."""
    here, run = _here[-1], durable.current_run()
    key = durable.idempotency_key().removeprefix(f"{run.id}/")
    with here.ledger.recorded(name, run.id, {"key": key, "attempt": run.attempt}):
        here.gates.pass_through(name)
        if seconds:
            take(seconds)
    return f"{name} done"


@durable.step
def work(name: str, seconds: float = 0.0) -> str:
    return _effect(name, seconds)


@durable.step(max_retries=5, default_retry_delay=0.6)
def moody(failures: int) -> int:
    """Raise at the first tries; return the number of the try that succeeded."""
    here, run = _here[-1], durable.current_run()
    here.ledger.write("start", "moody", run=run.id)
    tries = here.ledger.count("start", "moody", run.id)
    if tries <= failures:
        message = f"try {tries}"
        raise ConnectionError(message)
    return tries


@durable.step
def killing(name: str) -> str:
    """Be killed, as by the kernel when memory runs out."""
    _here[-1].ledger.write("start", name, run=durable.current_run().id)
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


@durable.step
def call(url: str) -> int:
    """Ask a server for something, and wait at a gate before anything of it is stored."""
    with httpx.Client(transport=DurableTransport()) as client:
        status = client.post(url, json={"amount": 5}).status_code
    _here[-1].ledger.write("called", "call", run=durable.current_run().id)
    _here[-1].gates.pass_through("called")
    return status


def calling(url: str) -> int:
    """Call a server in a step."""
    return call(url)


def flow(names: list[str], seconds: float = 0.0) -> list[str]:
    """Do one step per name, in order."""
    _body("flow")
    return [work.options(name=name)(name, seconds) for name in names]


def poison() -> str:
    """Kill the process in the second step, at every attempt."""
    work.options(name="before")("before")
    return killing("poison")


def interrupted() -> None:
    """End the process as Ctrl-C does, which says nothing."""
    raise KeyboardInterrupt


def exits(how: str) -> None:
    """Leave the body behind its first step as programs are left, or as a timeout of one's own does it."""
    work.options(name="first")("first")
    if how == "gevent.Timeout":
        from gevent import Timeout

        raise Timeout(0.1)
    error: type[BaseException] = getattr(builtins, how)
    raise error(2)


def flaky(self: Task[..., Any], failures: int) -> list[Any]:
    """Raise after the first step, `failures` times; then do the second."""
    _body("flaky")
    first = work.options(name="first")("first")
    if self.request.retries < failures:
        message = f"failure {self.request.retries + 1}"
        raise ValueError(message)
    return [first, work.options(name="second")("second"), self.request.retries]


def persistent(failures: int) -> list[Any]:
    """Do a step that fails now and then between two that do not."""
    first = work.options(name="first")("first")
    return [first, moody(failures), work.options(name="second")("second")]


def patient(self: Task[..., Any], delay: float) -> list[Any]:
    """Ask for one retry after `delay` seconds."""
    _body("patient")
    first = work.options(name="first")("first")
    if not self.request.retries:
        raise self.retry(countdown=delay)
    return [first, work.options(name="second")("second")]


def napping(seconds: float) -> list[Any]:
    """Sleep between two steps."""
    _body("napping")
    first = work.options(name="first")("first")
    durable.sleep(seconds=seconds)
    return [first, work.options(name="second")("second")]


def approval(timeout: float | None = None) -> list[Any]:
    """Wait for a signal between two steps."""
    _body("approval")
    first = work.options(name="first")("first")
    payload = durable.wait_for_signal("approved", timeout=timeout)
    return [first, payload, work.options(name="second")("second")]


def child(number: int) -> str:
    """Be one of several."""
    _body("child")
    work.options(name="child")("child")
    return f"child {number}"


def parent(children: int) -> list[Any]:
    """Let children do the work between two steps."""
    _body("parent")
    before = work.options(name="before")("before")
    results = durable.map(current_app.tasks["child"], range(children))
    return [before, results, work.options(name="after")("after")]


@durable.step
def fragile(name: str) -> str:
    """Fail for good while the gate of this name is closed."""
    if _here[-1].gates.closed(name):
        raise durable.Fatal(name)
    return name


def fragile_child(number: int) -> str:
    """Be one of several; the second one fails until it is mended."""
    _body("child")
    work.options(name="child")("child")
    if number == 1:
        fragile("mended")
        work.options(name="again")("again")
    return f"child {number}"


def parent_of_fragile(children: int) -> list[Any]:
    """Wait at a gate of the body, then for children."""
    here = _here[-1]
    here.ledger.write("body", "parent", run=durable.current_run().id)
    here.gates.pass_through("wait")
    return durable.map(current_app.tasks["fragile_child"], range(children))


def parent_of_poison() -> str:
    """Wait for a child that kills its worker at every attempt."""
    try:
        durable.call(current_app.tasks["poison"].s())
    except durable.ExhaustedError as error:
        return type(error).__name__
    return "it lives"


def plain_child() -> str:
    """Be a plain task, whose result nobody keeps."""
    here = _here[-1]
    here.ledger.write("body", "plain child")
    here.gates.pass_through("plain child")
    return "plain result"


def plain_replaced(self: Task[..., Any]) -> None:
    """Be a plain task that leaves its work to another one."""
    raise self.replace(self.app.tasks["plain_child"].s())


def parent_of_plain(child: str = "plain_child") -> Any:
    """Wait for a plain task."""
    return durable.call(current_app.tasks[child].s())


def parent_of_canvas(kind: str) -> Any:
    """Wait for flows, one after the other or side by side."""
    flow = current_app.tasks["flow"]
    if kind == "chain":
        return durable.call(chain(flow.si(["first"]), flow.si(["mid", "never"]), flow.si(["never"])))
    return durable.call(group(flow.s(["mid", "never"]) for _ in range(2)))


def tail(outcome: str) -> int:
    """Do a step; then, outside of any, wait at a gate and end; return the process id."""
    _body("tail")
    work.options(name="head")("head")
    _here[-1].gates.pass_through("tail")
    _here[-1].ledger.write("leaving", "tail", run=durable.current_run().id)
    if outcome == "raise":
        message = "raised at the end"
        raise durable.Fatal(message)
    return os.getpid()


def threaded(names: list[str]) -> list[str]:
    """Do the steps in threads of the body's own."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        calls = [pool.submit(contextvars.copy_context().run, work.options(key=name), name) for name in names]
        return [call.result() for call in calls]


def plain(text: str) -> str:
    """Do something without steps."""
    _body("plain")
    return text


def take_back(name: str) -> str:
    """Take a step back: an effect like any other."""
    return _effect(f"undo {name}")


def journey(names: list[str], sleeps: float = 0.0) -> list[str]:
    """Do one step per name, each of which can be taken back; one called `fails` does."""
    _body("journey")
    done = []
    for name in names:
        if name == "fails":
            message = "no way on"
            raise durable.Fatal(message)
        if name == "sleeps":
            durable.sleep(sleeps)
            continue
        done.append(work.options(name=name)(name))
        durable.on_rollback(take_back, name)
    return done


@durable.step
async def work_later(name: str, seconds: float = 0.0) -> str:
    """Leave a trace, wait at the gate of this name, leave another; the loop goes on meanwhile."""
    here, run = _here[-1], durable.current_run()
    key = durable.idempotency_key().removeprefix(f"{run.id}/")
    with here.ledger.recorded(name, run.id, {"key": key, "attempt": run.attempt}):
        await asyncio.to_thread(here.gates.pass_through, name)
        await asyncio.sleep(seconds)
    return f"{name} done"


async def concurrent(names: list[str], seconds: float = 0.0) -> list[str]:
    """Do two steps per name, all names at once, and a sync step after that."""
    _body("concurrent")

    async def both(name: str) -> str:
        await work_later(f"{name}1", seconds)
        return await work_later(f"{name}2")

    done = await asyncio.gather(*(both(name) for name in names))
    return [*done, work.options(name="last")("last")]


async def restless(self: Task[..., Any], failures: int) -> list[Any]:
    """Raise after the first step, `failures` times; say who executes it, and where."""
    first = await work_later.options(name="first")("first")
    if self.request.retries < failures:
        message = f"failure {self.request.retries + 1}"
        raise ValueError(message)
    child = _here[-1].app.tasks["plain"].delay("child")
    return [
        first,
        self.request.id,
        self.request.retries,
        child.id,
        id(asyncio.get_running_loop()),
        os.getpid(),
    ]


async def asks_for_a_retry(self: Task[..., Any]) -> int:
    """Ask for one retry."""
    await work_later.options(name="first")("first")
    if not self.request.retries:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


async def rests(seconds: float) -> str:
    """Sleep in the database while a step of another asyncio task is in flight."""

    async def sleeps() -> None:
        await asyncio.sleep(0.05)
        durable.sleep(seconds)

    _, value = await asyncio.gather(sleeps(), work_later.options(name="beside")("beside", 0.2))
    return value


async def branching(names: list[str], seconds: float) -> list[Any]:
    """Let each branch do a step, sleep in the database, wait for a child, and do another step."""

    async def branch(name: str) -> list[Any]:
        first = await work_later.options(name="first")(f"{name}1")
        durable.sleep(seconds)
        child = durable.call(current_app.tasks["plain"].s(name))
        return [first, child, await work_later.options(name="second")(f"{name}2")]

    return await asyncio.gather(*(branch(name) for name in names))


@durable.step
async def unhearing(how: str) -> None:
    """Hold the loop up, or go on whenever it is cancelled."""
    _here[-1].ledger.write("deaf", how, run=durable.current_run().id)
    if how == "blocks":
        take(60.0)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60.0)


async def deaf(how: str) -> None:
    """Do a step, and come to one that hears of no cancel."""
    await work_later.options(name="first")("first")
    await unhearing(how)


async def stuck() -> None:
    """Never return; clean up when cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        _here[-1].ledger.write("cleaned up", "stuck")


@durable.transaction
def entry(connection: Any, name: str, seconds: float) -> str:
    """Leave a row in a table of the user's; be slow about it."""
    run, key = durable.current_run(), durable.idempotency_key()
    _here[-1].ledger.write("start", name, run=run.id)
    connection.execute("insert into entry values (%s)", (key,))
    take(seconds)
    _here[-1].gates.pass_through(name)
    return f"{name} done"


def bookkeeping(names: list[str], seconds: float = 0.0, database: str | None = None) -> list[str]:
    """Do one transaction per name, every second one in another database if there is one."""
    _body("bookkeeping")
    return [
        entry.options(name=name, database=database if number % 2 else None)(name, seconds)
        for number, name in enumerate(names)
    ]


def _body(name: str) -> None:
    _here[-1].ledger.write("body", name, run=durable.current_run().id)


def echo(text: str) -> str:
    """Return what is given (no durable task)."""
    return text


def shout(size: int) -> None:
    """Fail with an error that is larger than the pipe to the main process (no durable task)."""
    here = _here[-1]
    here.ledger.write("start", "shout")
    here.gates.pass_through("shout")
    raise ValueError("!" * size)


def join(parts: list[Any]) -> list[Any]:
    """Be the body of a chord."""
    _body("join")
    return sorted(parts)


class Fragile(durable.DurableTask):
    """A task whose first sender is killed before anything of it is stored."""

    abstract = True

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Die once, then send."""
        ledger = _here[-1].ledger
        if not ledger.count("killed", self.name):
            ledger.write("killed", self.name)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply_async(*args, **options)


def on_error(request: Any, error: BaseException, _: Any) -> None:
    """Write down who failed and of what (an errback, and no durable task)."""
    _here[-1].ledger.write("errback", request.id, detail=type(error).__name__)


def on_success(value: Any) -> Any:
    """Write down that a link was called with a value."""
    _here[-1].ledger.write("link", "on_success", detail=value)
    return value


def register(app: Celery, ledger: Ledger, gates: Gates) -> None:
    """Give the app these tasks."""
    _here.append(Here(ledger, gates, app))
    soon = {"retry_backoff": False, "retry_jitter": False, "default_retry_delay": 0.3}
    app.task(flow, name="flow", **soon)
    app.task(calling, name="calling", **soon)
    app.task(poison, name="poison", **soon)
    app.task(interrupted, name="interrupted", **soon)
    app.task(exits, name="exits", **soon)
    app.task(deaf, name="deaf", **soon)
    app.task(flaky, name="flaky", bind=True, **soon)
    app.task(persistent, name="persistent", **soon)
    app.task(patient, name="patient", bind=True)
    app.task(napping, name="napping", **soon)
    app.task(approval, name="approval", **soon)
    app.task(child, name="child", **soon)
    app.task(parent, name="parent", **soon)
    app.task(fragile_child, name="fragile_child", **soon)
    app.task(parent_of_fragile, name="parent_of_fragile", autoretry_for=())
    app.task(parent_of_poison, name="parent_of_poison", **soon)
    app.task(plain_child, name="plain_child", base=Task, ignore_result=True)
    app.task(plain_replaced, name="plain_replaced", base=Task, bind=True)
    app.task(parent_of_plain, name="parent_of_plain", **soon)
    app.task(parent_of_canvas, name="parent_of_canvas", **soon)
    app.task(tail, name="tail", **soon)
    app.task(threaded, name="threaded", **soon)
    app.task(plain, name="plain", **soon)
    app.task(bookkeeping, name="bookkeeping", **soon)
    app.task(journey, name="journey", **soon)
    app.task(concurrent, name="concurrent", **soon)
    app.task(restless, name="restless", bind=True, **soon)
    app.task(asks_for_a_retry, name="asks_for_a_retry", bind=True, **soon)
    app.task(rests, name="rests", **soon)
    app.task(branching, name="branching", **soon)
    app.task(stuck, name="stuck", **soon)
    app.task(join, name="join", **soon)
    app.task(join, name="fragile", base=Fragile, **soon)
    app.task(echo, name="not_durable", base=Task)
    app.task(shout, name="shout", base=Task)
    app.task(on_error, name="on_error", base=Task)
    app.task(on_success, name="on_success")
