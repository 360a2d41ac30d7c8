"""`async def` bodies and steps on the real store: keys, cancellation, suspension, over several attempts."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually, take
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inspecting import Worker, execute
from replaying import seam

import celery_durable as durable
from celery_durable import context
from celery_durable.config import Settings
from celery_durable.exceptions import (
    LeaseLostError,
    NondeterminismError,
    RunCancelled,
    StepTimeLimitError,
    StepUsageError,
)
from celery_durable.executor import Execution, journal
from celery_durable.loop import event_loop
from celery_durable.seam import Suspended
from celery_durable.store.writes import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from celery_durable.store import Store

done: list[Any] = []
gates: dict[str, asyncio.Event] = {}
LEFT: list[str] = []


class Killed(BaseException):
    """The process ends here."""


@durable.step
async def work(name: str, seconds: float = 0.0) -> str:
    done.append(name)
    await asyncio.sleep(seconds)
    return f"{name} done"


@durable.step
def plain(name: str) -> str:
    done.append(name)
    return f"{name} done"


@durable.step(max_retries=2, default_retry_delay=0, autoretry_for=(OSError,))
async def flaky(failures: int) -> int:
    done.append("flaky")
    await asyncio.sleep(0)
    if done.count("flaky") <= failures:
        raise OSError("no")
    return done.count("flaky")


@durable.step
async def at_gate(name: str) -> str:
    done.append(name)
    if name in gates:
        await gates[name].wait()
    return f"{name} done"


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()
    gates.clear()
    LEFT.clear()


class Story:
    """One run, attempt after attempt."""

    def __init__(self, store: Store) -> None:
        self.store, self.worker = store, Worker(store)
        self.id = self.worker.enqueue()

    def claimed(self, **settings: Any) -> Execution:
        outcome = self.store.runs.claim(
            self.id, fence=uuid.uuid4(), token=self.worker.token, pid=7, revision=0
        )
        assert isinstance(outcome, tuple), outcome
        return Execution(
            *outcome,
            runs=self.store.runs,
            settings=Settings(**{"outage_budget": 0.0, **settings}),
            seam=seam(self.store),
        )

    def run(self, execution: Execution, body: Coroutine[Any, Any, Any]) -> Any:
        """Run a body as a worker does."""
        with context.activate(execution):
            frame = context.here()
            assert frame is not None
            muster = execution.muster()
            try:
                value = event_loop().complete(execution.led(body, frame, muster), muster.abort)
            except BaseException:
                if execution.leaving is not None:
                    raise execution.departed(execution.leaving) from None
                raise
            execution.conclude()
            return value

    def attempt(self, body: Callable[[], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        """Run a body; the attempt is then lost, as if its process had been killed."""
        try:
            return self.run(self.claimed(**settings), body())
        except Killed:
            return None
        finally:
            self.take_away()

    def take_away(self) -> None:
        self.store.runs.release_strays(self.worker.token, self.store.runs.owned(self.worker.token))

    def steps(self) -> dict[str, str]:
        rows = execute(self.store, "select key, outcome from durable.checkpoint order by key")
        return {row["key"]: row["outcome"] for row in rows}


@pytest.fixture
def story(store: Store) -> Story:
    """Return a run that was enqueued."""
    return Story(store)


def test_steps_are_awaited_once_and_sync_and_async_ones_mix(story: Story) -> None:
    async def body() -> list[str]:
        return [await work("a"), plain("b"), await work("c"), await asyncio.to_thread(plain, "d")]

    for _ in range(2):
        assert story.attempt(body) == ["a done", "b done", "c done", "d done"]

    assert done == ["a", "b", "c", "d"]
    assert story.steps() == {"plain": "ok", "plain#2": "ok", "work": "ok", "work#2": "ok"}


def test_gathered_steps_run_at_once_and_are_keyed_in_the_order_of_their_calls(story: Story) -> None:
    async def body() -> list[str]:
        return await asyncio.gather(work("slow", 0.1), work("middle", 0.05), work("fast"))

    assert story.attempt(body) == ["slow done", "middle done", "fast done"]
    rows = execute(story.store, "select key, arguments from durable.checkpoint order by key")
    assert [row["key"] for row in rows if "slow" in row["arguments"]] == ["work"]
    assert [row["key"] for row in rows if "fast" in row["arguments"]] == ["work#3"]

    assert story.attempt(body) == ["slow done", "middle done", "fast done"]
    assert sorted(done) == ["fast", "middle", "slow"]


def test_keys_within_tasks_do_not_depend_on_who_is_faster(story: Story) -> None:
    """Each task's second step is called when its first has ended, in any order."""

    async def pipeline(name: str, seconds: float) -> str:
        await work(f"{name}1", seconds)
        drawn = durable.uuid4()
        second = await work(f"{name}2")
        return f"{second} {drawn}"

    async def body(*seconds: float) -> list[str]:
        return list(
            await asyncio.gather(*(pipeline(name, s) for name, s in zip("abc", seconds, strict=True)))
        )

    first = story.attempt(lambda: body(0.1, 0.05, 0.0))
    assert story.attempt(lambda: body(0.1, 0.05, 0.0)) == first
    assert len(done) == 6
    assert len(set(first)) == 3
    assert set(story.steps()) == {
        "[1]/work",
        "[1]/work#2",
        "[2]/work",
        "[2]/work#2",
        "[3]/work",
        "[3]/work#2",
    }


def paces(shape: list[int]) -> st.SearchStrategy[list[list[list[int]]]]:
    """Return what gives each branch's steps their milliseconds, anew for each attempt."""
    branches = st.tuples(*(st.lists(st.integers(0, 3), min_size=size, max_size=size) for size in shape))
    return st.lists(branches.map(list), min_size=2, max_size=3)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    pauses=st.lists(st.integers(1, 3), min_size=2, max_size=4).flatmap(paces),
    dies_after=st.integers(1, 6),
)
def test_whoever_is_faster_and_wherever_it_dies_each_step_finds_its_own_checkpoint(
    store: Store, pauses: list[list[list[int]]], dies_after: int
) -> None:
    """The same branches in every attempt, at another pace in each."""
    story = Story(store)
    done.clear()
    shape = [len(branch) for branch in pauses[0]]

    pace_of: dict[str, float] = {}

    @durable.step
    async def paced(name: str) -> str:
        done.append(name)
        await asyncio.sleep(pace_of[name])
        return f"{name} done"

    async def branch(number: int, pace: list[int], limit: int) -> list[str]:
        values = []
        for step, pause in enumerate(pace):
            pace_of[f"{number}.{step}"] = pause / 1000
            values.append(await paced(f"{number}.{step}"))
            if len(done) >= limit:
                raise Killed
        return values

    async def body(paces: list[list[int]], limit: int) -> list[list[str]]:
        return list(await asyncio.gather(*(branch(n, pace, limit) for n, pace in enumerate(paces))))

    for attempt in pauses[:-1]:
        story.attempt(lambda attempt=attempt: body(attempt, dies_after))
    result = story.attempt(lambda: body(pauses[-1], 1000))

    assert result == [[f"{n}.{step} done" for step in range(size)] for n, size in enumerate(shape)]
    stored = execute(
        store,
        "select count(*) as steps from durable.checkpoint"
        " where outcome = 'ok' and run_key = (select key from durable.run where id = %s)",
        story.id,
    )
    assert stored[0]["steps"] == sum(shape)


def test_tasks_of_tasks_have_keys_of_their_own(story: Story) -> None:
    async def inner(name: str) -> str:
        return await work(name)

    async def outer(name: str) -> list[str]:
        return list(await asyncio.gather(inner(f"{name}1"), inner(f"{name}2")))

    async def body() -> Any:
        return await asyncio.gather(outer("a"), outer("b"))

    for _ in range(2):
        assert story.attempt(body) == [["a1 done", "a2 done"], ["b1 done", "b2 done"]]
    assert set(story.steps()) == {"[1]/[1]/work", "[1]/[2]/work", "[2]/[1]/work", "[2]/[2]/work"}
    assert len(done) == 4


def test_failed_tries_are_counted_and_retried_without_blocking_others(story: Story) -> None:
    async def body() -> Any:
        return await asyncio.gather(flaky(2), work("other"))

    assert story.attempt(body) == [3, "other done"]
    assert done.count("flaky") == 3


def test_a_killed_process_loses_what_was_in_flight_and_nothing_else(story: Story) -> None:
    async def body() -> Any:
        first = await work("first")
        if not LEFT:
            LEFT.append("once")
            raise Killed
        return [first, await work("second")]

    assert story.attempt(body) is None
    assert story.attempt(body) == ["first done", "second done"]
    assert done == ["first", "second"]


def test_two_runs_share_the_loop_and_one_that_waits_does_not_hold_the_other_up(store: Store) -> None:
    first, second = Story(store), Story(store)
    loops: list[Any] = []

    async def waits() -> str:
        loops.append(asyncio.get_running_loop())
        gates["held"] = asyncio.Event()
        return await at_gate("held")

    async def quick() -> str:
        loops.append(asyncio.get_running_loop())
        value = await work("quick")
        gates["held"].set()
        return value

    answers: list[Any] = []
    execution = first.claimed()
    thread = threading.Thread(target=lambda: answers.append(first.run(execution, waits())))
    thread.start()
    while "held" not in done:
        pass
    assert second.attempt(quick) == "quick done"
    thread.join(10)

    assert answers == ["held done"]
    assert loops[0] is loops[1]


# -- cancellation -----------------------------------------------------------------------------------------


def test_a_time_limit_cancels_the_step_and_is_its_error(story: Story) -> None:
    async def body() -> str:
        try:
            return await at_gate.options(time_limit=0.05)("stuck")
        except StepTimeLimitError:
            return "too long"

    gates["stuck"] = asyncio.Event()
    for _ in range(2):
        assert story.attempt(body) == "too long"
    assert done == ["stuck"]
    assert story.steps() == {"at_gate": "error"}


def test_a_step_that_the_body_cancels_is_cancelled_again_at_the_replay(story: Story) -> None:
    """Also if it would be fast this time: the body must not come to another branch."""

    async def body() -> str:
        try:
            return await asyncio.wait_for(at_gate("slow"), 0.05)
        except (asyncio.TimeoutError, TimeoutError):
            return await work("instead")

    gates["slow"] = asyncio.Event()
    assert story.attempt(body) == "instead done"
    del gates["slow"]
    assert story.attempt(body) == "instead done"
    assert done == ["slow", "instead"]
    assert story.steps() == {"at_gate": "error", "work": "ok"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
def test_asyncio_timeout_too(story: Story) -> None:
    async def body() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await at_gate("slow")
        return await work("after")

    gates["slow"] = asyncio.Event()
    for _ in range(2):
        assert story.attempt(body) == "after done"
    assert done == ["slow", "after"]


@pytest.fixture
def held_up(story: Story, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Return an event that says that a checkpoint is about to be written, and one that lets it."""
    storing, go_on = threading.Event(), threading.Event()
    checkpoint = story.store.runs.checkpoint

    def slowly(*args: Any, **options: Any) -> bool:
        storing.set()
        assert go_on.wait(10)
        return checkpoint(*args, **options)

    monkeypatch.setattr(story.store.runs, "checkpoint", slowly)
    return storing, go_on


def test_a_step_whose_value_is_being_stored_is_not_cancelled_any_more(
    story: Story, held_up: tuple[threading.Event, threading.Event]
) -> None:
    storing, go_on = held_up

    async def body() -> str:
        step = asyncio.ensure_future(work("stored"))
        await asyncio.to_thread(storing.wait, 10)
        step.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        return await step

    assert story.attempt(body) == "stored done"
    assert story.steps() == {"work": "ok"}


async def timed_gather() -> Any:
    return await asyncio.wait_for(asyncio.gather(work("a"), work("b")), 0.05)


async def timed_group() -> Any:
    async with asyncio.timeout(0.05):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(name)) for name in "ab"]
    return [one.result() for one in tasks]


@pytest.mark.parametrize(
    "timed",
    [
        timed_gather,
        pytest.param(
            timed_group, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="came with Python 3.11")
        ),
    ],
)
def test_a_group_that_runs_out_of_time_while_its_steps_are_stored_does_so_again(
    story: Story, held_up: tuple[threading.Event, threading.Event], timed: Callable[[], Any]
) -> None:
    """Its steps have succeeded, and it has not: the body took the way of the timeout."""
    _, go_on = held_up

    async def body() -> list[str]:
        asyncio.get_running_loop().call_later(0.2, go_on.set)
        try:
            await timed()
        except (asyncio.TimeoutError, TimeoutError):
            return [await work("out of time")]
        return [await work("in time")]

    assert story.attempt(body) == ["out of time done"]
    assert {story.steps()[key] for key in ("work", "work#2")} == {"ok"}
    assert story.attempt(body) == ["out of time done"]
    assert done == ["a", "b", "out of time"]


@pytest.mark.parametrize(
    ("step", "tried"),
    [
        pytest.param(flaky, ["flaky"], id="while its failed try is stored"),
        pytest.param(work.options(at_most_once=True), [], id="while its begin is stored"),
    ],
)
def test_a_step_that_is_cancelled_during_a_note_of_it_stays_cancelled(
    story: Story, held_up: tuple[threading.Event, threading.Event], step: Any, tried: list[str]
) -> None:
    storing, go_on = held_up

    async def body() -> str:
        called = asyncio.ensure_future(step(1))
        await asyncio.to_thread(storing.wait, 10)
        called.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        try:
            return str(await called)
        except asyncio.CancelledError:
            return plain("instead")

    for _ in range(2):
        assert story.attempt(body) == "instead done"
    assert done == [*tried, "instead"]


def test_a_step_that_is_cancelled_between_two_tries_is_cancelled_again_at_the_replay(story: Story) -> None:
    """Also if it would succeed this time."""
    patient = flaky.options(default_retry_delay=60)

    async def body() -> str:
        try:
            return str(await asyncio.wait_for(patient(1), 0.05))
        except (asyncio.TimeoutError, TimeoutError):
            return await work("instead")

    for _ in range(2):
        assert story.attempt(body, step_sleep=3600.0) == "instead done"
    assert done == ["flaky", "instead"]


@durable.step
async def insists(name: str) -> str:
    """Go on when cancelled."""
    done.append(name)
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(10)
    return f"{name} done"


@durable.step(max_retries=2, default_retry_delay=0)
async def breaks(name: str) -> None:
    """Make another error of a cancellation."""
    done.append(name)
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        raise OSError("connection lost") from None


@pytest.mark.parametrize(("step", "outcome"), [(insists, "ok"), (breaks, "error")])
def test_a_step_that_ends_in_its_own_way_when_it_is_cancelled_does_so_again(
    story: Story, step: Any, outcome: str
) -> None:
    """What waited for it was cancelled all the same, and a step that has no time is not tried again."""

    async def body() -> str:
        try:
            await asyncio.wait_for(asyncio.gather(step("a")), 0.05)
        except (asyncio.TimeoutError, TimeoutError):
            return await work("out of time")
        return await work("in time")

    for _ in range(2):
        assert story.attempt(body) == "out of time done"
    assert done == ["a", "out of time"]
    assert story.steps()[step.name] == outcome


def test_a_replay_has_the_time_that_the_body_had_at_first(story: Story) -> None:
    """However long another run holds the loop up meanwhile."""
    attempts: list[int] = []

    async def beside() -> None:
        if len(attempts) > 1:
            take(0.3)

    async def body() -> str:
        attempts.append(1)
        try:
            await asyncio.wait_for(asyncio.gather(work("a"), work("b"), beside()), 0.2)
        except (asyncio.TimeoutError, TimeoutError):
            return await work("out of time")
        return await work("in time")

    for _ in range(2):
        assert story.attempt(body) == "in time done"
    assert done == ["a", "b", "in time"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout came with Python 3.11")
def test_time_does_not_run_out_between_the_last_outcome_and_what_follows_from_it(story: Story) -> None:
    """There no step is left that could tell a replay of it."""
    attempts: list[int] = []

    async def last() -> None:
        await work("b", 0.02)
        if len(attempts) == 1:
            take(0.3)

    async def body() -> str:
        attempts.append(1)
        try:
            async with asyncio.timeout(0.2):
                await asyncio.gather(work("a"), last())
        except TimeoutError:
            return await work("out of time")
        return await work("in time")

    for _ in range(2):
        assert story.attempt(body) == "in time done"
    assert done == ["a", "b", "in time"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with Python 3.11")
def test_an_error_in_a_task_group_cancels_its_siblings_as_python_does(story: Story) -> None:
    @durable.step
    async def failing() -> None:
        done.append("failing")
        raise ValueError("no")

    async def body() -> str:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(at_gate("sibling"))
                group.create_task(failing())
        except Exception as errors:  # noqa: BLE001  (ExceptionGroup, in Pythons that have it)
            LEFT.extend(type(error).__name__ for error in errors.exceptions)  # type: ignore[attr-defined]
        return await work("after")

    gates["sibling"] = asyncio.Event()
    for _ in range(2):
        assert story.attempt(body) == "after done"
    assert LEFT == ["ValueError"] * 2
    assert sorted(done) == ["after", "failing", "sibling"]
    assert story.steps() == {"at_gate": "error", "failing": "error", "work": "ok"}


# -- the order of outcomes --------------------------------------------------------------------------------


@durable.step
async def takes(name: str, seconds: float) -> str:
    """Take so long when it is executed."""
    done.append(name)
    await asyncio.sleep(seconds)
    return name


async def first_wins() -> list[str]:
    tasks = [asyncio.ensure_future(takes("a", 0.1)), asyncio.ensure_future(takes("b", 0.02))]
    won = await next(asyncio.as_completed(tasks))
    after = await work(f"behind {won}")
    await asyncio.gather(*tasks)
    return [won, after]


async def as_they_arrive() -> list[str]:
    tasks = [asyncio.ensure_future(takes(name, seconds)) for name, seconds in SECONDS.items()]
    return [await work(await one) for one in asyncio.as_completed(tasks)]


async def through_a_queue() -> list[str]:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def put(name: str, seconds: float) -> None:
        await queue.put(await takes(name, seconds))
        await queue.put(await takes(f"{name} again", seconds))

    async def take() -> list[str]:
        return [await work(await queue.get()) for _ in range(2 * len(SECONDS))]

    taken, *_ = await asyncio.gather(take(), *(put(*one) for one in SECONDS.items()))
    return taken


async def under_a_lock() -> list[str]:
    lock, seen = asyncio.Lock(), list[str]()

    async def one(name: str, seconds: float) -> None:
        await takes(name, seconds)
        async with lock:
            seen.append(await takes(f"{name} locked", 0.02))

    await asyncio.gather(*(one(*each) for each in SECONDS.items()))
    return [await work(name) for name in seen]


async def the_first_and_then_the_rest() -> list[str]:
    pending = {asyncio.ensure_future(takes(name, seconds)) for name, seconds in SECONDS.items()}
    order: list[str] = []
    while pending:
        finished, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        order += sorted(one.result() for one in finished)
        await work(" ".join(order))
    return order


async def the_losers_are_cancelled() -> list[str]:
    tasks = [asyncio.ensure_future(takes(name, seconds)) for name, seconds in SECONDS.items()]
    won = await next(asyncio.as_completed(tasks))
    for one in tasks:
        one.cancel()
    await asyncio.wait(tasks)
    return [won, await work(won), *(await asyncio.gather(*(work(name) for name in SECONDS)))]


async def some_time_out() -> list[str]:
    seen: list[str] = []

    async def one(name: str, seconds: float) -> None:
        try:
            await asyncio.wait_for(takes(name, seconds), 0.05)
        except (asyncio.TimeoutError, TimeoutError):
            name = f"no {name}"
        seen.append(name)
        await work(" ".join(seen))

    await asyncio.gather(*(one(*each) for each in SECONDS.items()))
    return seen


@durable.step
async def ends_slowly(name: str, seconds: float) -> None:
    """Take so long to end when it is cancelled."""
    done.append(name)
    try:
        await asyncio.sleep(10)
    finally:
        await asyncio.sleep(seconds)


async def the_last_to_be_cancelled_ends_first() -> list[str]:
    seen: list[str] = []

    async def one(name: str, seconds: float) -> None:
        with suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(ends_slowly(name, seconds), 0.05)
        seen.append(name)
        await work(" ".join(seen))

    await asyncio.gather(one("a", 0.1), one("b", 0.0))
    return seen


async def at_once() -> list[str]:
    """Twenty end within a millisecond: in which order they are heard of is decided once."""
    seen: list[int] = []

    async def one(number: int) -> None:
        await takes(f"{number}", 0)
        seen.append(number)
        await work(" ".join(map(str, seen)))

    await asyncio.gather(*(one(number) for number in range(20)))
    return [str(number) for number in seen]


SECONDS = {"a": 0.12, "b": 0.03, "c": 0.08}


@pytest.mark.parametrize(
    "body",
    [
        first_wins, as_they_arrive, through_a_queue, under_a_lock, the_first_and_then_the_rest,
        the_losers_are_cancelled, some_time_out, the_last_to_be_cancelled_ends_first, at_once,
    ],
)  # fmt: skip
def test_a_replay_hears_of_steps_in_the_order_in_which_they_ended(
    story: Story, body: Callable[[], Coroutine[Any, Any, list[str]]]
) -> None:
    first = story.attempt(body)
    executed = len(done)

    assert story.attempt(body) == first
    assert len(done) == executed
    assert first[0] != "a"


@pytest.mark.parametrize("body", [through_a_queue, under_a_lock, the_first_and_then_the_rest, at_once])
def test_wherever_it_is_killed_a_body_goes_on_in_the_order_that_it_has_seen(
    story: Story, body: Callable[[], Coroutine[Any, Any, list[str]]]
) -> None:
    """Killed when a write has been answered, each time one later: what is executed behind it fits in."""

    async def killed(after: int) -> list[str]:
        checkpoint, answered = story.store.runs.checkpoint, 0

        def dying(*args: Any, **options: Any) -> bool:
            nonlocal answered
            stop = checkpoint(*args, **options)
            answered += 1
            if answered >= after:
                raise Killed
            return stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(story.store.runs, "checkpoint", dying)
            return await body()

    for after in (1, 2, 3, 2, 1):
        story.attempt(lambda after=after: killed(after))
    last = story.attempt(body)
    assert story.attempt(body) == last
    assert len(last) == len(set(last))


def test_a_step_that_fails_beside_others_is_tried_again_with_its_run(story: Story) -> None:
    """Though one of those succeeded later: it knew nothing of that error."""

    async def body() -> Any:
        return await asyncio.gather(flaky.options(max_retries=0)(1), takes("slow", 0.05))

    execution = story.claimed()
    with pytest.raises(OSError, match="no"):
        story.run(execution, body())
    story.store.runs.release(execution.claim.key, execution.claim.fence, AGAIN)
    assert story.steps() == {"flaky": "discarded", "takes": "ok"}

    assert story.attempt(body) == [2, "slow"]


def test_a_branch_that_went_on_behind_an_error_does_not_keep_the_run_from_trying_that_again(
    story: Story,
) -> None:
    """It was another branch's: nothing was decided by it."""

    async def pipeline() -> str:
        await takes("fetch", 0.02)
        return await takes("store", 0.02)

    async def fragile() -> int:
        return await flaky.options(max_retries=0)(1)

    async def body() -> Any:
        ended = await asyncio.gather(pipeline(), fragile(), return_exceptions=True)
        for one in ended:
            if isinstance(one, BaseException):
                raise one
        return ended

    execution = story.claimed()
    with pytest.raises(OSError, match="no"):
        story.run(execution, body())
    failed = replace(AGAIN, error="OSError: no")
    story.store.runs.release(execution.claim.key, execution.claim.fence, failed)

    assert story.attempt(body) == ["store", 2]
    assert sorted(done) == ["fetch", "flaky", "flaky", "store"]


def test_coroutines_that_as_completed_starts_are_refused_their_steps(story: Story) -> None:
    """It starts them in the order of a set: a replay gave each of them the steps of another."""

    async def one(name: str) -> str:
        return await work(name)

    async def body() -> list[str]:
        return [await each for each in asyncio.as_completed([one("a"), one("b")])]

    async def with_tasks() -> list[str]:
        tasks = [asyncio.ensure_future(one(name)) for name in "ab"]
        return sorted([await each for each in asyncio.as_completed(tasks)])

    async def with_steps() -> list[str]:
        return sorted([await each for each in asyncio.as_completed([work("c"), work("d")])])

    async def without_steps() -> list[int]:
        return sorted([await each for each in asyncio.as_completed([number(1), number(2)])])

    async def number(given: int) -> int:
        return given

    with pytest.raises(StepUsageError, match=r"asyncio\.as_completed.*create_task"):
        story.attempt(body)
    assert done == []
    for _ in range(2):
        assert Story(story.store).attempt(without_steps) == [1, 2]
        assert story.attempt(with_tasks) == ["a done", "b done"]
    assert Story(story.store).attempt(with_steps) == ["c done", "d done"]


def test_an_error_that_the_body_went_on_from_stays_when_its_run_is_tried_again(story: Story) -> None:
    async def body() -> str:
        with suppress(OSError):
            await asyncio.gather(flaky.options(max_retries=0)(1), takes("slow", 0.05))
        await work("went on")
        raise LookupError

    execution = story.claimed()
    with pytest.raises(LookupError):
        story.run(execution, body())
    story.store.runs.release(execution.claim.key, execution.claim.fence, AGAIN)

    assert story.steps() == {"flaky": "error", "takes": "ok", "work": "ok"}


AGAIN = Release("retry", timedelta(0), reason="retry", discard="errors")


# -- leaving the worker -----------------------------------------------------------------------------------


def leaving_bodies() -> list[Callable[[], Coroutine[Any, Any, Any]]]:  # noqa: C901
    """Bodies that sleep for an hour in one task while a step of another is in flight."""

    async def sleeps() -> None:
        await asyncio.sleep(0.02)  # the other's step is in flight by now
        durable.sleep(3600)
        done.append("slept")

    async def works() -> None:
        await work("in flight", 0.1)
        try:
            await work("too late")
        finally:
            done.append("cleaned up")

    async def gathered() -> None:
        await asyncio.gather(sleeps(), works())

    async def hidden() -> None:
        await asyncio.gather(sleeps(), works(), return_exceptions=True)
        await work("too late")

    async def in_the_background() -> None:
        tasks = [asyncio.ensure_future(sleeps()), asyncio.ensure_future(works())]
        await asyncio.sleep(3600)
        await asyncio.wait(tasks)

    async def stubborn() -> None:
        try:
            await gathered()
        except BaseException:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            raise

    bodies = [gathered, hidden, in_the_background, stubborn]
    if sys.version_info >= (3, 11):

        async def grouped() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(sleeps())
                group.create_task(works())

        async def in_time() -> None:
            async with asyncio.timeout(3600):
                await grouped()

        bodies += [grouped, in_time]
    return bodies


@pytest.mark.parametrize("body", leaving_bodies(), ids=lambda body: body.__name__)
def test_a_run_that_leaves_finishes_its_steps_in_flight_and_stores_nothing_after(
    story: Story, body: Callable[[], Coroutine[Any, Any, Any]]
) -> None:
    execution = story.claimed()

    with pytest.raises(Suspended) as left:
        story.run(execution, body())

    assert left.value.stored
    assert done == ["in flight", "cleaned up"]
    (run,) = execute(story.store, "select state, reason, due > now() as later from durable.run")
    assert (run["state"], run["later"]) == ("waiting", True)
    assert [key for key, outcome in story.steps().items() if outcome == "ok"] == ["[2]/work"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with Python 3.11")
def test_a_step_that_has_begun_as_the_run_leaves_is_executed_though_its_group_is_cancelled(
    story: Story, held_up: tuple[threading.Event, threading.Event]
) -> None:
    """Else it were a step that was started, with no outcome: nobody knew that it has done nothing."""
    storing, go_on = held_up

    async def sleeps() -> None:
        await asyncio.to_thread(storing.wait, 10)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        durable.sleep(3600)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeps())
            group.create_task(work.options(at_most_once=True)("once"))

    with pytest.raises(Suspended):
        story.run(story.claimed(), body())

    assert done == ["once"]
    assert story.steps()["work"] == "ok"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with Python 3.11")
def test_a_step_between_two_tries_as_the_run_leaves_is_tried_again_when_it_is_back(story: Story) -> None:
    """Its group's cancellation is no doing of the body."""
    patient = flaky.options(default_retry_delay=60)

    async def sleeps() -> None:
        await asyncio.to_thread(eventually, lambda: "flaky" in story.steps())
        durable.sleep(3600)

    async def body() -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeps())
            tried = group.create_task(patient(1))
        return str(tried.result())

    with pytest.raises(Suspended):
        story.run(story.claimed(step_sleep=60.0), body())

    assert done == ["flaky"]
    assert story.steps()["flaky"] == "trying"


def test_a_short_sleep_does_not_hold_up_the_loop(story: Story) -> None:
    """As one of a `def` body does its thread: it would make the time of other tasks run out."""

    async def body() -> None:
        durable.sleep(1.9)

    with pytest.raises(Suspended):
        story.run(story.claimed(step_sleep=2.0), body())
    assert story.steps() == {"sleep": "waiting"}


def test_a_signal_that_comes_while_steps_are_finished_brings_the_run_back_at_once(story: Story) -> None:
    async def waits() -> Any:
        await asyncio.sleep(0.02)
        return durable.wait_for_signal("go")

    async def sends() -> None:
        await work("in flight", 0.05)
        await asyncio.to_thread(send)

    def send() -> None:
        execute(
            story.store,
            "select durable.send_signal(%s, 'go', '\"now\"')",
            story.id,
        )

    @durable.step
    async def sending() -> None:
        await sends()

    async def body() -> Any:
        answer, _ = await asyncio.gather(waits(), sending())
        return answer

    with pytest.raises(Suspended) as left:
        story.run(story.claimed(), body())
    assert (left.value.outcome, left.value.stored) == ("released", False)
    story.take_away()
    assert story.attempt(body) == "now"


def test_a_worker_that_drains_lets_steps_in_flight_finish(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        await asyncio.gather(work("a", 0.05), drains())
        await work("next")

    async def drains() -> None:
        await asyncio.sleep(0.01)
        monkeypatch.setattr("celery_durable.attempt.hooks.draining", lambda: True)
        await work("late")

    with pytest.raises(Suspended) as left:
        story.run(story.claimed(), body())
    assert left.value.outcome == "released"
    assert done == ["a"]
    assert story.steps() == {"work": "ok"}


def test_a_task_in_the_background_does_not_hear_for_the_body(story: Story) -> None:
    execution = story.claimed()

    async def polls() -> None:
        await work("news")
        await work("never polled")

    async def body() -> None:
        await work("first")
        background = asyncio.ensure_future(polls())
        story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
        await asyncio.wait({background})
        await work("never")

    with pytest.raises(RunCancelled):
        story.run(execution, body())
    assert done == ["first", "news"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with Python 3.11")
@pytest.mark.parametrize("where", ["handler", "finally", "task of the handler"])
def test_whoever_was_told_by_a_group_that_it_waited_for_may_clean_up(story: Story, where: str) -> None:
    execution = story.claimed()

    async def body() -> None:
        await work("first")
        story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
        await work("news")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(one())
        except BaseException:
            if where == "handler":
                await work("clean up")
            elif where == "task of the handler":
                await asyncio.gather(cleaning())
            raise
        finally:
            if where == "finally":
                await work("clean up")

    async def one() -> None:
        await work("never")

    async def cleaning() -> None:
        await work("clean up")

    with pytest.raises(BaseExceptionGroup):  # noqa: F821
        story.run(execution, body())
    assert done == ["first", "news", "clean up"]


@pytest.mark.parametrize("step", ["async", "sync"])
def test_a_step_that_begins_long_after_the_last_write_asks_first_whether_it_may(
    story: Story, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    execution = story.claimed()

    async def body() -> None:
        await work("first")
        story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
        monkeypatch.setattr(journal, "_A_WHILE", 0.0)
        if step == "async":
            await asyncio.gather(*(work("never") for _ in range(20)))
        else:
            plain("never")

    with pytest.raises(RunCancelled):
        story.run(execution, body())
    assert done == ["first"]


def test_a_cancelled_run_is_told_once_also_in_a_task(story: Story) -> None:
    execution = story.claimed()

    async def body() -> None:
        await work("first")
        (_,) = story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
        await work("second")
        try:
            await asyncio.gather(work("third"))
        except RunCancelled:
            await work("clean up")
            raise

    with pytest.raises(RunCancelled):
        story.run(execution, body())
    assert done == ["first", "second", "clean up"]


def test_an_attempt_that_lost_its_lease_hears_of_it_and_its_other_tasks_end(story: Story) -> None:
    execution = story.claimed()

    async def works() -> None:
        await work("a")
        story.take_away()
        await work("b")

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            done.append("ended")

    async def body() -> None:
        await asyncio.gather(works(), forever())

    with pytest.raises(LeaseLostError):
        story.run(execution, body())
    assert execution.lost
    assert done == ["a", "b", "ended"]


def test_an_interruption_from_outside_ends_all_tasks_and_stores_nothing_of_them(story: Story) -> None:
    """As Celery's soft time limit: raised in the thread that waits for the body."""
    execution = story.claimed()
    muster = execution.muster()

    async def body() -> None:
        await asyncio.gather(work("a", 3600), work("b", 3600))

    with context.activate(execution):
        frame = context.here()
        assert frame is not None
        led = execution.led(body(), frame, muster)

        def interrupted(coroutine: Any) -> None:
            event_loop().complete(coroutine)

        async def soon() -> None:
            task = asyncio.ensure_future(led)
            await asyncio.sleep(0.1)
            muster.abort()
            with suppress(asyncio.CancelledError):
                await task

        interrupted(soon())
    assert sorted(done) == ["a", "b"]
    assert story.steps() == {}


# -- determinism ------------------------------------------------------------------------------------------


def test_time_in_a_task_is_refused_for_its_order_would_not_be_the_same(story: Story) -> None:
    async def inner() -> Any:
        return durable.now()

    async def body() -> Any:
        return durable.now(), await asyncio.gather(inner())

    with pytest.raises(StepUsageError, match="who is faster"):
        story.attempt(body)


def test_other_arguments_at_the_replay_are_nondeterminism(story: Story) -> None:
    async def body(name: str) -> str:
        return await work(name)

    story.attempt(lambda: body("a"))
    with pytest.raises(NondeterminismError):
        story.attempt(lambda: body("b"))


def test_a_step_that_is_called_and_never_awaited_is_not_run(story: Story) -> None:
    async def body() -> str:
        work("never").close()
        return await work("awaited")

    for _ in range(2):
        assert story.attempt(body) == "awaited done"
    assert done == ["awaited"]
    assert story.steps() == {"work#2": "ok"}


def test_outside_of_a_run_an_async_step_is_its_function() -> None:
    assert asyncio.run(work("plain")) == "plain done"


def test_in_a_sync_body_an_async_step_is_awaited_by_asyncio_run(story: Story) -> None:
    execution = story.claimed()

    def body() -> str:
        return asyncio.run(work("mixed"))

    with context.activate(execution):
        assert body() == "mixed done"
    assert story.steps() == {"work": "ok"}


def test_several_tasks_of_asyncio_run_in_a_sync_body_are_refused_their_steps(story: Story) -> None:
    """They would get their keys in the order in which they come to them, which is another one at a replay."""

    async def one(name: str) -> None:
        await work(f"{name}1")
        await work(f"{name}2")

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))

    refused = pytest.raises(StepUsageError, match="Make the task itself an `async def`")
    with context.activate(story.claimed()), refused:
        asyncio.run(both())


def test_those_with_keys_of_their_own_are_not_nor_several_steps_of_one_task(story: Story) -> None:
    async def one(name: str) -> str:
        return await work.options(key=name)(name)

    async def all_of_them() -> list[str]:
        first = await asyncio.gather(work("a"), work("b"))
        return [*first, *(await asyncio.gather(one("c"), one("d")))]

    for _ in range(2):
        with context.activate(story.claimed()):
            assert asyncio.run(all_of_them()) == ["a done", "b done", "c done", "d done"]
            assert asyncio.run(work("e")) == "e done"
        story.take_away()
    assert sorted(done) == ["a", "b", "c", "d", "e"]
