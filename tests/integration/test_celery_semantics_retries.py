"""`self.retry` and `autoretry_for`: the same attempts, hooks, signals and outcome as of a plain task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import states
from celery.exceptions import MaxRetriesExceededError
from harness.waiting import eventually
from semantics.registry import KINDS

if TYPE_CHECKING:
    from celery.result import AsyncResult
    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)
PUBLISHING = ("before_task_publish", "after_task_publish")


def start(world: Semantics, kind: str, how: str, *args: Any, **options: Any) -> AsyncResult[Any]:
    return world.task(kind, "retry").apply_async((how, *args), **options)


@both
@pytest.mark.parametrize(
    ("how", "expected", "bodies"),
    [
        ("delayed", [1, 5], [[0, 5], [1, 5]]),
        ("changed", [1, 6], [[0, 5], [1, 6]]),
        ("changed keyword", [1, 6], [[0, 5], [1, 6]]),
    ],
)
def test_a_retry_runs_again_with_its_own_or_other_arguments(
    on_redis: Semantics, kind: str, how: str, expected: list[int], bodies: list[list[int]]
) -> None:
    result = on_redis.task(kind, "retry").apply_async((how,), {"value": 5})
    assert result.get(timeout=20) == expected
    assert on_redis.seen(result.id, "body") == bodies


@both
def test_a_retry_is_seen_as_retry_with_its_reason(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "delayed", 1)
    eventually(lambda: result.state == states.RETRY, what=lambda: result.state)
    assert result.result is None
    assert result.get(timeout=20) == [1, 1]


@both
def test_the_reason_of_a_retry_is_its_result_meanwhile(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "patient", 1)
    reason = eventually(lambda: result.state == states.RETRY and result.result)
    assert (type(reason), reason.args) == (LookupError, ("for value 1",))
    assert "LookupError" in result.traceback
    assert result.get(timeout=20) == [1, 1]


@both
def test_retries_end_with_max_retries_exceeded(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "exceeded")
    with pytest.raises(MaxRetriesExceededError):
        result.get(timeout=20)
    assert [retries for retries, _ in on_redis.seen(result.id, "body")] == [0, 1, 2]


@both
def test_retries_end_with_the_error_given(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "exceeded with error", 3)
    with pytest.raises(LookupError, match="for value 3"):
        result.get(timeout=20)
    assert len(on_redis.seen(result.id, "body")) == 3


@both
def test_a_call_of_retry_overrides_max_retries(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "from handler", 4)
    with pytest.raises(KeyError):
        result.get(timeout=20)
    assert len(on_redis.seen(result.id, "body")) == 2


def test_a_retry_calls_the_same_hooks_and_signals(on_redis: Semantics) -> None:
    plain, durable = (start(on_redis, kind, "exceeded with error", 3) for kind in KINDS)
    for result in (plain, durable):
        on_redis.outcome(result)
        eventually(lambda run=result.id: len(on_redis.seen(run, "task_postrun")) == 3)  # type: ignore[misc]
    # The second attempt may begin in another child before the first one's last hook was called.
    stories = [
        sorted(map(repr, on_redis.story(one.id, without=(*PUBLISHING, "task_received"))))
        for one in (plain, durable)
    ]
    assert stories[1] == stories[0]
    assert len(on_redis.seen(durable.id, "on_retry")) == len(on_redis.seen(durable.id, "task_retry")) == 2


@both
def test_monitors_hear_of_retries(on_redis: Semantics, kind: str) -> None:
    result = start(on_redis, kind, "exceeded")
    events = on_redis.events(result.id, "task-failed")
    assert events.count("task-retried") == 2
    assert events.count("task-received") == 3


@pytest.mark.parametrize("how", ["without throw", "ignored", "caught"])
def test_who_has_asked_for_a_retry_is_retried_whatever_the_body_makes_of_it(
    on_redis: Semantics, how: str
) -> None:
    """Celery has sent its message by then; a plain task's first result may be seen until it is replaced."""
    result = start(on_redis, "durable", how)
    assert result.get(timeout=20) == "second"
    assert on_redis.tables.outcomes(result.id) == ["retry", "succeeded"]


def test_a_retry_raised_by_hand_runs_again(on_redis: Semantics) -> None:
    """Celery loses a task whose body raises Retry without sending anything: here no run is lost."""
    assert start(on_redis, "durable", "by hand").get(timeout=20) == 1


@both
def test_a_retry_keeps_lineage_priority_stamps_limits_and_headers(on_redis: Semantics, kind: str) -> None:
    signature = (
        on_redis.task(kind, "retry")
        .s("described")
        .set(priority=4, time_limit=30, soft_time_limit=20, headers={"own": "header"}, shadow="shadow name")
    )
    signature.stamp(batch="test")
    result = signature.apply_async()
    about = result.get(timeout=20)
    assert about["id"] == about["root_id"] == result.id
    assert (about["retries"], about["priority"], about["own_header"]) == (1, 4, "header")
    assert about["timelimit"] == [30, 20]
    assert about["shadow"] == "shadow name"
    assert "batch" in about["stamped_headers"]
    assert about["stamps"]["batch"] in ("test", ["test"])


@both
def test_a_retry_may_change_headers_and_shadow(on_redis: Semantics, kind: str) -> None:
    about = start(on_redis, kind, "rerouted").get(timeout=20)
    assert (about["own_header"], about["shadow"]) == ("header", "another")


@both
def test_autoretry_for_retries_its_errors_and_no_others(on_redis: Semantics, kind: str) -> None:
    auto = on_redis.task(kind, "auto")
    assert auto.delay(2).get(timeout=20) == 2
    with pytest.raises(KeyError):
        auto.delay(9).get(timeout=20)
    failed = auto.delay(1, "ValueError")
    with pytest.raises(ValueError, match="0"):
        failed.get(timeout=20)
    assert len(on_redis.seen(failed.id, "task_prerun")) == 1


@both
def test_autoretry_lets_ignore_pass(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "auto").delay(1, "Ignore")
    on_redis.story(result.id)
    assert not result.ready()
    assert len(on_redis.seen(result.id, "task_prerun")) == 1


@both
def test_links_of_a_retried_task_are_called_once(on_redis: Semantics, kind: str) -> None:
    record = on_redis.task(kind, "record")
    result = start(on_redis, kind, "delayed", 1, link=record.s("linked"))
    assert result.get(timeout=20) == [1, 1]
    (linked,) = eventually(lambda: result.children)
    assert linked.get(timeout=20) == [[1, 1], "linked"]


@both
@pytest.mark.parametrize("how", ["by itself", "by hand"])
def test_throws_keeps_nobody_from_retrying_on_purpose(on_redis: Semantics, kind: str, how: str) -> None:
    assert on_redis.task(kind, "throw_and_retry").delay(how).get(timeout=20) == 1


def test_a_retry_sent_elsewhere_is_looked_for_there(on_redis: Semantics) -> None:
    result = start(on_redis, "durable", "elsewhere", 1)
    eventually(lambda: on_redis.tables.run(result.id)["retries"] == 1)
    assert on_redis.tables.run(result.id)["queue"] == "elsewhere"
    result.revoke()
    eventually(lambda: result.state == states.REVOKED)
