"""The executor on the real store: what a body does once, again, or never, over several attempts."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attempting import Killed, Story
from celery.exceptions import SoftTimeLimitExceeded
from contending import move_clock
from inspecting import execute
from replaying import inside

import celery_durable as durable
from celery_durable.exceptions import (
    LeaseLostError,
    NondeterminismError,
    RunCancelled,
    SerializationError,
    StepInterruptedError,
)
from celery_durable.seam import Suspended
from celery_durable.store.runs import NewRun, Release

if TYPE_CHECKING:
    from celery_durable.store import Store

NOW = timedelta(0)
done: list[str] = []


@durable.step
def work(name: str) -> str:
    done.append(name)
    return f"{name} done"


@durable.step(max_retries=2, default_retry_delay=0, autoretry_for=(OSError,))
def flaky(error: type[BaseException] | None) -> str:
    done.append("flaky")
    if error is not None:
        raise error("no")
    return "worked"


@durable.step(at_most_once=True)
def charge(*, dies: bool) -> str:
    done.append("charge")
    if dies:
        raise Killed
    return "charged"


class Declined(Exception):  # noqa: N818
    """An error whose constructor takes other arguments than it hands on, and something that is not stored."""

    def __init__(self, code: int, *, response: object) -> None:
        super().__init__(f"declined: {code}")
        self.code, self.response = code, response


@durable.step(max_retries=3, default_retry_delay=0)
def refuse(error: str) -> None:
    done.append("refuse")
    raise Declined(7, response=object()) if error == "declined" else durable.Fatal("no money")


@durable.step
def connect() -> Any:
    done.append("connect")
    return object()


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    done.clear()


@pytest.fixture
def story(store: Store) -> Story:
    """Return a run that was enqueued."""
    return Story(store)


def test_finished_steps_never_run_again_whenever_the_process_dies(story: Story) -> None:
    def body(steps: int) -> list[str]:
        values = [work(name) for name in "abc"[:steps]]
        if steps < 3:
            raise Killed
        return values

    for steps in (1, 2, 3):
        value = story.attempt(lambda steps=steps: body(steps))

    assert value == ["a done", "b done", "c done"]
    assert done == ["a", "b", "c"]
    assert story.steps() == {"work": ("ok", 1), "work#2": ("ok", 1), "work#3": ("ok", 1)}


def test_failed_tries_are_counted_over_attempts_and_not_in_memory(story: Story) -> None:
    """Three tries in all: one before the crash, two after it."""
    execution = story.claimed(step_sleep=-1.0)
    with pytest.raises(Suspended) as suspended:
        inside(execution, lambda: flaky(OSError))
    assert (suspended.value.outcome, suspended.value.reason) == ("suspended", "retry")
    story.take_away()
    assert story.steps() == {"flaky": ("trying", 1)}

    with pytest.raises(OSError, match="no"):
        story.attempt(lambda: flaky(OSError))

    assert done == ["flaky"] * 3
    assert story.steps() == {"flaky": ("error", 3)}


def test_a_step_that_works_at_its_last_try_is_a_success(story: Story) -> None:
    errors: list[type[OSError] | None] = [OSError, OSError, None]

    @durable.step(max_retries=2, default_retry_delay=0, autoretry_for=(OSError,))
    def third_time() -> str:
        error = errors.pop(0)
        if error is not None:
            raise error
        return "lucky"

    assert story.attempt(third_time) == "lucky"
    assert story.attempt(third_time) == "lucky"
    assert story.steps() == {"third_time": ("ok", 3)}


def test_an_error_that_the_body_caught_is_caught_again_at_the_replay(story: Story) -> None:
    def body() -> str:
        try:
            flaky(ValueError)
        except ValueError:
            return work("fallback")
        return "no error"

    assert story.attempt(body) == "fallback done"
    assert story.attempt(body) == "fallback done"
    assert done == ["flaky", "fallback"]


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_body_is_given_what_a_replay_gives_it_also_at_the_first_time(story: Story, attempts: int) -> None:
    def body() -> tuple[Any, ...]:
        try:
            refuse("declined")
        except Declined as error:
            return error.code, str(error), hasattr(error, "response"), error.__notes__[0].count("response")
        return ()

    for _ in range(attempts):
        value = story.attempt(body)
    assert value == (7, "declined: 7", False, 1)
    assert done == ["refuse"] * 4


def test_an_error_of_which_not_all_is_stored_has_the_whole_one_as_its_cause(story: Story) -> None:
    with pytest.raises(Declined) as error:
        story.attempt(lambda: refuse("declined"))
    assert hasattr(error.value.__cause__, "response")

    with pytest.raises(ValueError, match="no") as plain:
        story.attempt(lambda: flaky(ValueError))
    assert plain.value.__cause__ is None
    assert plain.traceback[-1].name == "flaky"


def test_a_step_that_raises_fatal_is_not_tried_again(story: Story) -> None:
    with pytest.raises(durable.Fatal, match="no money"):
        story.attempt(lambda: refuse("fatal"))

    assert done == ["refuse"]
    assert story.steps() == {"refuse": ("error", 1)}


@durable.step(max_retries=0)
def slow() -> str:
    done.append("slow")
    if len(done) == 1:
        raise SoftTimeLimitExceeded
    return "fast"


@pytest.mark.parametrize("then", ["step", "wait"])
def test_a_step_that_was_cut_off_has_ended_so_once_its_body_goes_on(story: Story, then: str) -> None:
    deaths = [Killed]

    def body() -> str:
        try:
            return slow()
        except SoftTimeLimitExceeded:
            if then == "step":
                work("fallback")
            else:
                durable.sleep(seconds=0.01)
        if deaths:
            raise deaths.pop()
        return "went on"

    story.attempt(body)
    assert story.attempt(body) == "went on"
    assert done == ["slow", "fallback"][: 2 if then == "step" else 1]
    assert story.steps()["slow"] == ("error", 1)


def test_a_step_that_was_cut_off_and_whose_body_went_no_further_runs_again(story: Story) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        story.attempt(slow)

    assert story.steps() == {}
    assert story.attempt(slow) == "fast"


def test_a_retry_of_the_run_tries_the_failed_step_with_all_its_tries_again(story: Story) -> None:
    for _ in range(2):
        execution = story.claimed()
        with pytest.raises(OSError, match="no"):
            inside(execution, lambda: [work("a"), flaky(OSError)])
        claim = execution.claim
        story.store.runs.release(
            claim.key, claim.fence, Release("retry", NOW, "retry", publish=True, retries=1, discard="errors")
        )

    assert story.attempt(lambda: [work("a"), flaky(None)])[1] == "worked"
    assert done == ["a", *["flaky"] * 7]
    assert story.steps() == {"work": ("ok", 1), "flaky": ("ok", 7)}


def test_an_at_most_once_step_whose_process_died_never_runs_again(story: Story) -> None:
    story.attempt(lambda: charge(dies=True))
    for _ in range(2):
        with pytest.raises(StepInterruptedError, match="Find out what it did"):
            story.attempt(lambda: charge(dies=False))

    assert done == ["charge"]
    assert story.steps() == {"charge": ("started", 1)}


def test_an_at_most_once_step_that_finished_is_replayed(story: Story) -> None:
    assert [story.attempt(lambda: charge(dies=False)) for _ in range(2)] == ["charged", "charged"]
    assert done == ["charge"]


def test_a_superseded_attempt_is_stopped_at_its_next_step_and_at_its_end(story: Story) -> None:
    execution = story.claimed()
    inside(execution, lambda: work("a"))
    story.take_away()
    story.claimed()

    for name in ("b", "c"):
        with pytest.raises(LeaseLostError):
            inside(execution, lambda name=name: work(name))
    with pytest.raises(LeaseLostError):
        execution.conclude()

    assert execution.lost
    assert done == ["a", "b"], "one body may start before the write that is refused, and no other"
    assert story.steps() == {"work": ("ok", 1)}


def test_a_value_that_cannot_be_stored_fails_the_step_and_is_not_tried_again(story: Story) -> None:
    retried = connect.options(max_retries=5, default_retry_delay=0)
    for _ in range(2):
        with pytest.raises(SerializationError, match="connect"):
            story.attempt(retried)

    assert done == ["connect"]
    assert story.steps() == {"connect": ("error", 1)}


def test_a_cancelled_run_is_told_once_and_may_clean_up_with_steps(story: Story) -> None:
    execution = story.claimed()

    def body() -> str:
        work("a")
        story.store.inspection.cancel([story.id], operation=uuid.uuid4(), actor="ada", reason=None)
        work("b")  # its checkpoint brings the news
        try:
            work("c")
        except RunCancelled:
            return work("cleaned up")
        return "never told"

    assert inside(execution, body) == "cleaned up done"
    assert done == ["a", "b", "cleaned up"]


def test_a_body_that_changed_is_caught_at_the_replay(story: Story) -> None:
    story.attempt(lambda: [work("a"), work("b")])

    with pytest.raises(NondeterminismError, match="other arguments"):
        story.attempt(lambda: [work("a"), work("x")])
    with pytest.raises(NondeterminismError, match="'work#2'"):
        story.attempt(lambda: [work("a")])
    assert done == ["a", "b"]


def test_time_and_chance_that_were_stored_with_a_step_come_back(story: Story, store: Store) -> None:
    def body() -> list[Any]:
        before = durable.now(), durable.uuid4()
        work("a")
        return [*before, durable.now() if len(done) > 1 else None]

    first = story.attempt(body)
    move_clock(store, "1 day")
    second = story.attempt(body)

    assert second == first


def test_time_drawn_before_a_failed_try_outlives_the_attempts_after_it(story: Story) -> None:
    times: list[Any] = []

    def body(error: type[OSError] | None) -> None:
        times.append(durable.now())
        flaky(error)

    with pytest.raises(Suspended):
        inside(story.claimed(step_sleep=-1.0), lambda: body(OSError))
    story.take_away()
    for _ in range(2):
        story.attempt(lambda: body(None))

    assert len(set(times)) == 1


def test_a_child_is_started_once_under_an_id_that_every_attempt_knows(story: Story) -> None:
    def new_run(run_id: str) -> NewRun:
        done.append(run_id)
        return NewRun(id=run_id, task="t", queue="celery", priority=None, message=b"{}", body=b"[]")

    ids = []
    for _ in range(2):
        execution = story.claimed()
        ids.append(execution.child("media.thumbnail", new_run)[0])
        story.take_away()

    assert ids == [done[0]] * 2
    assert len(done) == 1
    assert len(execute(story.store, "select id from durable.run where id = %s", ids[0])) == 1
