"""Sleeping: a row with a due time, fixed once, by the database's clock alone."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from attempting import Killed, Story
from contending import move_clock
from inspecting import execute
from replaying import inside

import celery_durable as durable
from celery_durable import exceptions
from celery_durable.exceptions import LeaseLostError, NondeterminismError, RunCancelled, StepUsageError
from celery_durable.run import RunState
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store import Store

HOUR = timedelta(hours=1)
done: list[str] = []


@durable.step
def work(name: str) -> str:
    done.append(name)
    return f"{name} done"


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def story(store: Store) -> Story:
    """Return a run that was enqueued."""
    return Story(store)


def nap() -> str:
    work("before")
    durable.sleep(hours=1)
    return work("after")


def test_a_sleeping_run_is_a_row_that_nobody_owns_with_the_databases_time_to_wake(story: Story) -> None:
    story.leaves(nap)

    row = story.row("state, reason, due, worker, pid, custom_state, claimed_at")
    assert (row["state"], row["reason"], row["worker"], row["pid"]) == ("waiting", "sleep", None, None)
    assert HOUR <= row["due"] - row["claimed_at"] < HOUR + timedelta(seconds=30)
    assert done == ["before"]
    assert [row["outcome"] for row in execute(story.store, "select outcome from durable.attempt")] == [
        "suspended"
    ]


def test_it_goes_on_after_the_sleep_when_its_time_has_come(story: Story, store: Store) -> None:
    story.leaves(nap)
    assert story.wake() == 0
    move_clock(store, "61 minutes")
    assert story.wake() == 1

    assert story.attempt(nap) == "after done"
    assert done == ["before", "after"]


def test_a_crash_neither_extends_nor_restarts_a_sleep(story: Story, store: Store) -> None:
    story.leaves(nap)
    due = story.row()["due"]
    for minutes in (10, 40):
        move_clock(store, f"{minutes} minutes")
        execute(
            store, "update durable.run set state = 'pending', reason = null"
        )  # somebody wakes it too early
        story.leaves(nap)
        assert story.row()["due"] == due
    move_clock(store, "1 hour")
    story.wake()

    assert story.attempt(nap) == "after done"
    assert done == ["before", "after"]


@pytest.mark.parametrize("offset", ["-3 days", "3 days"])
def test_a_worker_whose_clock_is_days_off_sleeps_as_long_and_is_not_claimed_again_and_again(
    store: Store, offset: str
) -> None:
    """A due time made by a worker and judged by the database would be over at once, or in days."""
    move_clock(store, offset)
    story = Story(store)
    story.leaves(nap)
    row = story.row()
    assert timedelta(minutes=59) < row["due"] - row["now"] <= HOUR
    assert story.wake() == 0
    move_clock(store, f"{offset} 61 minutes")
    assert story.wake() == 1

    assert story.attempt(nap) == "after done"


def test_a_sleep_whose_answer_was_lost_recognises_itself(story: Story) -> None:
    execution = story.claimed()
    real, answers = execution._journal.runs.waits.leave, []

    def twice(*args: Any) -> Any:
        answers.extend([real(*args), real(*args)])
        return answers[-1]

    execution._journal.runs.waits.leave = twice  # type: ignore[method-assign]
    with pytest.raises(Suspended):
        inside(execution, lambda: durable.sleep(HOUR))

    assert [answer.left for answer in answers] == [True, True]
    assert answers[0].outcome == answers[1].outcome == "waiting"
    outcomes = execute(story.store, "select outcome from durable.attempt")
    assert [row["outcome"] for row in outcomes] == ["suspended"]


def short() -> str:
    durable.sleep(milliseconds=80)
    return work("after")


def test_a_short_sleep_stays_on_the_worker_and_is_recorded_all_the_same(story: Story) -> None:
    began = story.row()["now"]

    assert story.attempt(short) == "after done"

    assert story.row()["now"] - began >= timedelta(milliseconds=80)
    assert story.steps()["sleep"] == ("waiting", 1)


def test_a_short_sleep_that_was_cut_off_is_not_slept_again(story: Story, store: Store) -> None:
    """Killed in its middle; found again hours later."""

    class Cut(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise Killed

    def body() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("celery_durable.executor.waiting.threading.Event", Cut)
            durable.sleep(seconds=1.5)

    story.attempt(body)
    due = execute(store, "select due from durable.checkpoint where kind = 'sleep'")
    move_clock(store, "1 hour")
    story.attempt(body)  # does not wait: Cut would end it

    assert story.attempt(lambda: [durable.sleep(seconds=1.5), work("after")][1]) == "after done"
    assert execute(store, "select due from durable.checkpoint where kind = 'sleep'") == due


@pytest.mark.parametrize("length", [timedelta(milliseconds=2001), timedelta(days=3653)])
def test_any_length_is_kept_as_it_is(story: Story, length: timedelta) -> None:
    story.leaves(lambda: durable.sleep(length))

    row = story.row("due, claimed_at")
    assert length <= row["due"] - row["claimed_at"] < length + timedelta(seconds=30)


def test_several_sleeps_have_keys_of_their_own(story: Story, store: Store) -> None:
    def body() -> str:
        for _ in range(3):
            durable.sleep(hours=1)
        return "rested"

    for hours in (1, 2, 3):
        story.leaves(body)
        move_clock(store, f"{hours * 61} minutes")
        story.wake()

    assert story.attempt(body) == "rested"
    assert list(story.steps()) == ["sleep", "sleep#2", "sleep#3"]


def test_until_a_moment_and_not_at_all_when_it_is_over(story: Story, store: Store) -> None:
    when = story.row()["now"] + HOUR

    def body() -> str:
        durable.sleep_until(when - 2 * HOUR)
        durable.sleep(0)
        durable.sleep(timedelta(days=-1))
        durable.sleep_until(when)
        return "there"

    story.leaves(body)
    assert story.row()["due"] == when
    move_clock(store, "1 hour")
    story.wake()

    assert story.attempt(body) == "there"
    assert list(story.steps()) == ["sleep#4"], "what does not wait is not stored"


def test_a_deploy_that_changes_the_length_leaves_a_sleep_that_was_begun_as_it_is(
    story: Story, store: Store
) -> None:
    story.leaves(nap)
    move_clock(store, "1 hour")
    story.wake()

    assert story.attempt(lambda: [work("before"), durable.sleep(days=9), "slept"][2]) == "slept"


def test_a_body_that_catches_everything_leaves_its_worker_all_the_same(story: Story) -> None:
    def body() -> str:
        try:
            durable.sleep(hours=1)
        except BaseException:  # noqa: BLE001  (what users write)
            with suppress(BaseException):
                work("never")
        finally:
            with suppress(BaseException):
                work("never either")
        return "wide awake"

    story.leaves(body)
    assert done == []
    assert story.row()["state"] == "waiting"


def first_then_second() -> None:
    durable.sleep(hours=1)
    durable.sleep_until(datetime(2100, 1, 1, tzinfo=timezone.utc))
    durable.wait_for_signal("approved")


@pytest.mark.parametrize(
    ("changed", "met"),
    [
        (lambda: durable.wait_for_signal("approved"), "wait_for_signal:approved"),
        (lambda: [durable.sleep(hours=1), durable.wait_for_signal("approved")], "wait_for_signal:approved"),
    ],
    ids=["the first", "the second"],
)
def test_waits_in_another_order_are_nondeterminism_with_both_of_them(
    story: Story, store: Store, changed: Callable[[], Any], met: str
) -> None:
    story.leaves(first_then_second)
    move_clock(store, "1 hour")
    story.wake()
    story.leaves(first_then_second)
    execute(store, "update durable.run set state = 'pending', reason = null")

    with pytest.raises(NondeterminismError, match=r"waits in another order") as error:
        story.attempt(changed)
    assert error.value.facts["met"] == met
    assert error.value.facts["stored"] in ("sleep", "sleep#2")


def test_a_wait_that_is_gone_from_the_body_is_nondeterminism(story: Story, store: Store) -> None:
    story.leaves(nap)
    move_clock(store, "1 hour")
    story.wake()

    with pytest.raises(NondeterminismError, match="'sleep'"):
        story.attempt(lambda: [work("before"), work("after")])


def test_a_step_in_the_place_of_a_wait_is_nondeterminism(story: Story, store: Store) -> None:
    story.leaves(lambda: durable.sleep(hours=1))
    move_clock(store, "1 hour")
    story.wake()

    with pytest.raises(NondeterminismError, match="holds a wait of that key: sleep"):
        story.attempt(lambda: work.options(key="sleep")("x"))
    assert done == []


def test_a_superseded_attempt_does_not_put_the_run_to_sleep(story: Story) -> None:
    old = story.claimed()
    story.take_away()
    story.claimed()

    for length in (timedelta(milliseconds=5), HOUR):
        with pytest.raises(LeaseLostError):
            inside(old, lambda length=length: durable.sleep(length))
    assert old.lost
    assert story.row()["state"] == "running"
    assert story.steps() == {}


def cancel(story: Story) -> RunState | None:
    (change,) = story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
    return change.state


def test_a_sleeping_run_that_is_cancelled_is_over_at_once(story: Story, store: Store) -> None:
    story.leaves(nap)

    assert cancel(story) is RunState.CANCELLED
    move_clock(store, "2 hours")
    assert story.wake() == 0


@pytest.mark.parametrize("length", [timedelta(milliseconds=5), HOUR])
def test_a_run_that_is_asked_to_stop_does_not_go_to_sleep_not_even_while_it_cleans_up(
    story: Story, length: timedelta
) -> None:
    execution = story.claimed()

    def body() -> None:
        work("before")
        cancel(story)
        try:
            durable.sleep(length)
        except RunCancelled:
            work("cleaning up")
            durable.sleep(length)

    with pytest.raises(RunCancelled):
        inside(execution, body)
    assert done == ["before", "cleaning up"]
    assert story.row()["state"] == "running"


def test_a_run_sleeps_in_its_body_and_not_in_a_step_or_a_thread(story: Story) -> None:
    @durable.step
    def restless() -> None:
        durable.sleep(hours=1)

    def in_a_thread() -> None:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                durable.sleep(hours=1)
            except StepUsageError as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        raise errors[0]

    with pytest.raises(StepUsageError, match="sleep is called in the step 'restless'"):
        story.attempt(restless)
    with pytest.raises(StepUsageError, match="in a thread"):
        Story(story.store).attempt(in_a_thread)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: durable.sleep("1 hour"),  # type: ignore[arg-type]
        lambda: durable.sleep(float("nan")),
        lambda: durable.sleep(None),  # type: ignore[arg-type]
        lambda: durable.sleep(True),  # noqa: FBT003
        lambda: durable.sleep(0, seconds=0.001),
        durable.sleep,
        lambda: durable.sleep(seconds=None),
        lambda: durable.sleep(seconds="1"),  # type: ignore[arg-type]
        lambda: durable.sleep(minutes=True),
        lambda: durable.sleep_until("2030-01-01"),  # type: ignore[arg-type]
        lambda: durable.sleep(weeks=10_000_000_000),
        lambda: durable.sleep(timedelta.max),
        lambda: durable.sleep_until(datetime(2030, 1, 1)),  # noqa: DTZ001
        lambda: durable.sleep_until(datetime.max.replace(tzinfo=timezone.utc)),
        lambda: durable.wait_for_signal(""),
        lambda: durable.wait_for_signal("x" * 201),
        lambda: durable.wait_for_signal("a\0b"),
        lambda: durable.wait_for_signal("approved", timeout=timedelta.max),
    ],
    ids="abcdefghijklmnopqr",
)
def test_what_cannot_be_meant_is_an_error_of_the_call(wrong: Callable[[], None]) -> None:
    with pytest.raises(StepUsageError):
        wrong()


def test_a_length_of_nothing_that_is_said_returns_at_once() -> None:
    durable.sleep(0)
    durable.sleep(seconds=0)
    durable.sleep(hours=1, minutes=-60)


def test_a_moment_more_than_a_hundred_years_away_is_refused_and_nothing_is_stored(story: Story) -> None:
    moment = datetime.max.replace(tzinfo=timezone.utc)

    with pytest.raises(StepUsageError, match="more than a hundred years away"):
        story.attempt(lambda: durable.sleep_until(moment))
    assert story.steps() == {}


def test_outside_a_run_sleep_sleeps_and_signals_have_nobody_to_go_to() -> None:
    durable.sleep(milliseconds=1)
    durable.sleep_until(datetime(2020, 1, 1, tzinfo=timezone.utc))
    with pytest.raises(exceptions.DurableError, match="outside a run"):
        durable.wait_for_signal("approved")
