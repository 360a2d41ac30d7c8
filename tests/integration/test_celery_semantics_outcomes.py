"""What callers, hooks, signals and monitors see of an outcome: the same of durable tasks as of plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import states
from celery.exceptions import Reject
from harness.waiting import eventually
from semantics.bodies import OddError
from semantics.registry import KINDS

if TYPE_CHECKING:
    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)


def test_a_success_calls_the_same_hooks_and_signals_with_the_same_values(on_redis: Semantics) -> None:
    plain, durable = (on_redis.task(kind, "add").delay(2, 3) for kind in KINDS)
    assert on_redis.story(durable.id) == on_redis.story(plain.id)
    assert [event for event, _ in on_redis.story(durable.id)] == [
        "task_prerun",
        "before_start",
        "on_success",
        "task_success",
        "after_return",
        "task_postrun",
    ]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fail", ["sorry"]),
        ("fail_oddly", []),
        ("throw", ["key"]),
        ("ignored", ["raise"]),
        ("ignored", ["value"]),
    ],
)
def test_a_failure_or_an_ignored_result_calls_the_same_hooks_and_signals(
    on_redis: Semantics, name: str, args: list[Any]
) -> None:
    plain, durable = (on_redis.task(kind, name).apply_async(args) for kind in KINDS)
    assert on_redis.story(durable.id) == on_redis.story(plain.id)


@both
def test_a_success_is_read_as_state_value_and_date(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "add").delay(2, 3)
    assert result.get(timeout=20) == 5
    assert (result.state, result.result, result.traceback) == (states.SUCCESS, 5, None)
    assert result.successful()
    assert result.date_done is not None
    assert result.children == []


@both
def test_a_failure_is_read_as_the_exception_and_its_traceback(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "fail").delay("sorry")
    with pytest.raises(ValueError, match=r"^sorry$"):
        result.get(timeout=20)
    assert result.state == states.FAILURE
    assert isinstance(result.result, ValueError)
    lines = result.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: sorry"
    assert any("in fail" in line for line in lines)
    assert on_redis.outcome(result).get(propagate=False).args == ("sorry",)


@both
def test_an_exception_comes_back_with_its_class_and_arguments(on_redis: Semantics, kind: str) -> None:
    with pytest.raises(OddError) as raised:
        on_redis.task(kind, "fail_oddly").delay().get(timeout=20)
    assert raised.value.args == (7, "odd")


@both
def test_a_body_finds_itself_started_by_the_right_request(on_redis: Semantics, kind: str) -> None:
    task = on_redis.task(kind, "about")
    result = task.apply_async(
        (1,), {"k": 2}, task_id=f"my-own-id-{kind}", shadow="shadow name", headers={"own": "h"}
    )
    about = result.get(timeout=20)
    assert result.id == about["id"] == about["correlation_id"] == about["root_id"] == f"my-own-id-{kind}"
    assert (about["args"], about["kwargs"], about["argsrepr"]) == ([1], {"k": 2}, "(1,)")
    assert (about["parent_id"], about["group"], about["retries"], about["shadow"]) == (
        None,
        None,
        0,
        "shadow name",
    )
    assert about["routing_key"] == on_redis.setup.queue
    assert about["own_header"] == "h"
    assert about["state"] == states.STARTED
    assert not about["called_directly"]
    assert not about["is_eager"]


@both
def test_a_custom_state_is_seen_until_the_task_is_over(on_redis: Semantics, kind: str) -> None:
    on_redis.gates.close(f"progress-{kind}")
    result = on_redis.task(kind, "progress").delay()
    eventually(lambda: result.state == "PROGRESS", what=lambda: result.state)
    assert result.info == {"done": 1}
    assert not result.ready()
    on_redis.gates.open(f"progress-{kind}")
    assert result.get(timeout=20) == "done"


@both
def test_ignore_leaves_the_state_the_body_has_set(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "ignore").delay("SKIPPED")
    on_redis.story(result.id)
    assert (result.state, result.info) == ("SKIPPED", {"by": "hand"})


def test_ignore_calls_no_outcome_hook_and_stores_no_result(on_redis: Semantics) -> None:
    plain, durable = (on_redis.task(kind, "ignore").delay() for kind in KINDS)
    assert on_redis.story(durable.id) == on_redis.story(plain.id)
    assert on_redis.story(durable.id)[-1] == ("task_postrun", ["IGNORED", "Ignore()"])
    assert not durable.ready()
    assert not plain.ready()
    assert on_redis.tables.run(durable.id)["state"] == "cancelled"


@both
def test_a_rejected_task_fails(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "reject").delay(False)  # noqa: FBT003
    with pytest.raises(Reject):
        result.get(timeout=20)
    assert result.state == states.FAILURE


def test_a_task_rejected_with_requeue_runs_again_under_its_id(on_redis: Semantics) -> None:
    result = on_redis.task("durable", "reject").delay(True)  # noqa: FBT003
    assert result.get(timeout=20) == "accepted"
    assert len(on_redis.seen(result.id, "task_prerun")) >= 2


@both
@pytest.mark.parametrize("value", ["value", "raise"])
def test_an_ignored_result_is_not_stored(on_redis: Semantics, kind: str, value: str) -> None:
    result = on_redis.task(kind, "ignored").delay(value)
    on_redis.story(result.id)
    again = on_redis.app.AsyncResult(result.id)
    assert (again.state, again.result) == (states.PENDING, None)
    assert result.get(timeout=1) is None


@both
def test_a_caller_may_ignore_one_result(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "add").apply_async((1, 2), ignore_result=True)
    on_redis.story(result.id)
    assert on_redis.app.AsyncResult(result.id).state == states.PENDING


@both
@pytest.mark.parametrize(
    ("name", "args", "last"), [("add", [1, 2], "task-succeeded"), ("fail", ["sorry"], "task-failed")]
)
def test_monitors_hear_of_sent_received_started_and_the_end(
    on_redis: Semantics, kind: str, name: str, args: list[Any], last: str
) -> None:
    result = on_redis.task(kind, name).apply_async(args)
    # Client and worker publish on connections of their own: task-sent may come late.
    events = on_redis.events(result.id, "task-sent", last)
    assert events.count("task-sent") == 1
    assert [event for event in events if event != "task-sent"] == ["task-received", "task-started", last]


def test_a_client_hears_of_its_own_publish_once(on_redis: Semantics) -> None:
    for kind in KINDS:
        result = on_redis.task(kind, "add").delay(1, 2)
        result.get(timeout=20)
        assert len(on_redis.seen(result.id, "before_task_publish")) == 1
        assert len(on_redis.seen(result.id, "after_task_publish")) == 1
        assert len(on_redis.seen(result.id, "task_received")) == 1
