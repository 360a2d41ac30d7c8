"""Ways to call a task, and options of a call: the same of durable tasks as of plain ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery, states
from celery.contrib.abortable import AbortableAsyncResult
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError
from harness.waiting import eventually
from semantics.bodies import Order
from semantics.registry import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def eager(on_redis: Semantics) -> Iterator[Celery]:
    on_redis.app.conf.task_always_eager = True
    yield on_redis.app
    on_redis.app.conf.task_always_eager = False
    on_redis.app.conf.task_eager_propagates = False


# -- without a worker -------------------------------------------------------------------------------------


@both
def test_a_direct_call_is_a_plain_function_call(on_redis: Semantics, kind: str) -> None:
    assert on_redis.task(kind, "add")(2, 3) == 5
    assert on_redis.task(kind, "shouting")(4) == 4
    assert on_redis.task(kind, "counting")(1, step=3) == 4
    with pytest.raises(ValueError, match="sorry"):
        on_redis.task(kind, "fail")("sorry")


@both
def test_apply_runs_here_and_returns_an_eager_result(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "about").apply((1,), {"k": 2})
    assert (result.state, result.get()["is_eager"], result.get()["args"]) == (states.SUCCESS, True, (1,))
    failed = on_redis.task(kind, "fail").apply(("sorry",))
    assert (failed.state, type(failed.result)) == (states.FAILURE, ValueError)
    with pytest.raises(ValueError, match="sorry"):
        on_redis.task(kind, "fail").apply(("sorry",), throw=True)


@both
def test_apply_retries_here(on_redis: Semantics, kind: str) -> None:
    assert on_redis.task(kind, "retry").apply(("delayed", 7)).get() == [1, 7]
    assert on_redis.task(kind, "auto").apply((2,)).get() == 2
    assert on_redis.task(kind, "replace").apply(("task",)).get() == 5


@both
def test_always_eager_applies_delay_and_canvas_here(on_redis: Semantics, eager: Celery, kind: str) -> None:
    add, total = on_redis.task(kind, "add"), on_redis.task(kind, "total")
    assert add.delay(2, 3).get() == 5
    assert (add.s(1, 2) | add.s(3)).delay().get() == 6
    assert ((add.s(1, 1) | add.s(2)) | total.map([[1, 2]]).set(immutable=True)).delay().get() == [3]
    eager.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="sorry"):
        on_redis.task(kind, "fail").delay("sorry")


@both
def test_eager_results_are_stored_when_asked_for(
    on_redis: Semantics, eager: Celery, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = on_redis.task(kind, "add")
    monkeypatch.setattr(task, "store_eager_result", True)
    result = task.delay(2, 3)
    eager.conf.task_always_eager = False
    stored = on_redis.app.AsyncResult(result.id)
    assert (stored.state, stored.result) == (states.SUCCESS, 5)


# -- by name, by class, with types -------------------------------------------------------------------------


@both
def test_a_task_sent_by_name_from_an_app_that_does_not_know_it_runs(on_redis: Semantics, kind: str) -> None:
    setup = on_redis.setup
    with Celery("stranger", broker=setup.broker, backend=setup.backend, set_as_current=False) as stranger:
        stranger.conf.update(task_default_queue=setup.queue, **setup.settings)
        result = stranger.send_task(f"{kind}.starts", (2,), {}, headers={"own": "h"})
        assert len(result.get(timeout=20)) == 2
        assert [child.get(timeout=20) for child in result.children] == [0, 2]
        later = stranger.send_task(f"{kind}.add", (2, 3), countdown=0.3, expires=60)
        assert later.get(timeout=20) == 5
        closing: Any = stranger.backend
        closing.store.close()
    if kind == "durable":
        assert on_redis.tables.run(result.id)["state"] == "succeeded"


@both
def test_a_task_sent_by_name_is_received_once_and_is_not_its_own_child(
    on_redis: Semantics, kind: str
) -> None:
    result = on_redis.app.send_task(f"{kind}.add", (2, 3))
    assert result.get(timeout=20) == 5
    on_redis.story(result.id)
    assert len(on_redis.seen(result.id, "task_received")) == 1
    assert result.children == []


@both
def test_a_task_sent_by_name_with_arguments_that_do_not_fit_fails(on_redis: Semantics, kind: str) -> None:
    result = on_redis.app.send_task(f"{kind}.add", (2,), link_error=on_redis.task(kind, "errback").s())
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        result.get(timeout=20)
    assert result.state == states.FAILURE
    if kind == "durable":
        run = on_redis.tables.run(result.id)
        assert (run["state"], run["reason"], run["attempt"]) == ("failed", "unclaimed", 0)
    eventually(lambda: on_redis.seen(result.id, "errback"))


@both
def test_a_chain_sent_by_name_goes_on(on_redis: Semantics, kind: str) -> None:
    signature = on_redis.app.signature
    canvas = signature(f"{kind}.add", (1, 2), app=on_redis.app) | signature(
        f"{kind}.add", (3,), app=on_redis.app
    )
    assert canvas.apply_async().get(timeout=20) == 6


@both
def test_class_based_and_customised_tasks_run(on_redis: Semantics, kind: str) -> None:
    assert on_redis.task(kind, "counting").delay(1, step=2).get(timeout=20) == 3
    shouted = on_redis.task(kind, "shouting").delay(4)
    assert shouted.get(timeout=20) == 4
    assert len(on_redis.seen(shouted.id, "__call__")) == 1


@both
def test_a_custom_request_class_is_used(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "requested").delay()
    assert result.get(timeout=20) == "accepted"
    assert on_redis.seen(result.id, "on_accepted") == [None]


@both
def test_pydantic_arguments_and_results_are_converted(on_redis: Semantics, kind: str) -> None:
    order = on_redis.task(kind, "order")
    assert order.delay(Order(item="tea", count=2), extra=1).get(timeout=20) == {"item": "tea", "count": 3}
    assert order.delay({"item": "tea"}).get(timeout=20) == {"item": "tea", "count": 1}
    assert order(Order(item="tea")) in (Order(item="tea"), {"item": "tea", "count": 1})
    refused = order.delay({"count": 2})
    assert type(refused.get(timeout=20, propagate=False)).__name__ == "ValidationError"
    assert "item" in refused.traceback


@both
def test_wrong_arguments_are_an_error_of_the_caller(on_redis: Semantics, kind: str) -> None:
    with pytest.raises(TypeError):
        on_redis.task(kind, "add").delay(1)


# -- when -------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("given", ["countdown", "eta"])
def test_countdown_and_eta_are_kept(on_redis: Semantics, kind: str, given: str) -> None:
    soon = on_redis.tables.one("select clock_timestamp()") + timedelta(seconds=0.7)
    options: dict[str, Any] = {"countdown": 0.7} if given == "countdown" else {"eta": soon}
    result = on_redis.task(kind, "add").apply_async((1, 2), **options)
    if kind == "durable":
        assert not on_redis.seen(result.id, "task_received")
        run = on_redis.tables.run(result.id)
        assert (run["state"], run["reason"]) == ("waiting", "timer")
        assert on_redis.seen(result.id, "before_task_publish")[0]["eta"] is None
    assert result.get(timeout=20) == 3
    assert on_redis.tables.one("select clock_timestamp()") >= soon


@both
@pytest.mark.parametrize("given", ["seconds", "moment"])
def test_a_task_that_expired_before_it_started_is_revoked(on_redis: Semantics, kind: str, given: str) -> None:
    past = datetime.fromtimestamp(0, tz=timezone.utc)
    result = on_redis.task(kind, "add").apply_async((1, 2), expires=-5 if given == "seconds" else past)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.state == states.REVOKED
    assert not on_redis.seen(result.id, "on_success")


@both
def test_a_body_reads_when_it_was_due_and_until_when(on_redis: Semantics, kind: str) -> None:
    before = on_redis.app.now()
    about = on_redis.task(kind, "about").apply_async(countdown=0.2, expires=60).get(timeout=20)
    due, until = (datetime.fromisoformat(about[name]) for name in ("eta", "expires"))
    assert 0.2 <= (due - before).total_seconds() < 10
    assert 60 <= (until - before).total_seconds() < 70


@both
def test_expires_in_time_changes_nothing(on_redis: Semantics, kind: str) -> None:
    assert on_redis.task(kind, "add").apply_async((1, 2), expires=60).get(timeout=20) == 3


# -- limits, priority, revoke -----------------------------------------------------------------------------


@both
def test_a_soft_time_limit_is_raised_in_the_body(on_redis: Semantics, kind: str) -> None:
    with pytest.raises(SoftTimeLimitExceeded):
        on_redis.task(kind, "slow").delay(15).get(timeout=20)


@both
def test_time_limits_of_a_call_reach_the_request(on_redis: Semantics, kind: str) -> None:
    about = on_redis.task(kind, "about").apply_async(time_limit=30, soft_time_limit=20).get(timeout=20)
    assert about["timelimit"] == [30, 20]


@both
@pytest.mark.parametrize("priority", [0, 5, 9])
def test_priority_reaches_the_broker(on_redis: Semantics, kind: str, priority: int) -> None:
    result = on_redis.task(kind, "about").apply_async(priority=priority)
    assert result.get(timeout=20)["priority"] == priority


@both
def test_a_revoked_task_does_not_start(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "add").apply_async((1, 2), countdown=1.5)
    result.revoke()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.state == states.REVOKED


@both
def test_a_running_task_is_terminated(on_redis: Semantics, kind: str) -> None:
    gate = f"terminate-{kind}"
    on_redis.gates.close(gate)
    result = on_redis.task(kind, "wait").delay(gate)
    eventually(lambda: on_redis.seen(result.id, "waiting"))
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert "task-succeeded" not in on_redis.events(result.id, "task-revoked")
    assert [True, False] in on_redis.seen(result.id, "task_revoked")
    on_redis.gates.open(gate)


@both
def test_an_abortable_task_hears_that_it_is_aborted(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "abortable").delay(10)
    eventually(lambda: on_redis.seen(result.id, "waiting"))
    AbortableAsyncResult(result.id, app=on_redis.app).abort()
    assert result.get(timeout=20) == "aborted"
    assert result.state == states.SUCCESS


@both
def test_a_stamped_task_is_revoked_by_its_stamp(on_redis: Semantics, kind: str) -> None:
    on_redis.app.control.revoke_by_stamped_headers({"customer": [f"gone-{kind}"]})
    signature = on_redis.task(kind, "add").s(1, 2)
    signature.stamp(customer=f"gone-{kind}")
    result = signature.apply_async()
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)


# -- runs within runs -------------------------------------------------------------------------------------


def test_a_function_called_in_a_run_is_inline_and_a_delayed_one_starts_once(on_redis: Semantics) -> None:
    result = on_redis.app.tasks["outer"].delay(5)
    first, second, children = result.get(timeout=20)
    assert (first, second) == (10, 12)
    assert len(set(children)) == 2
    assert on_redis.seen(result.id, "step") == ["doubled", "inner/doubled"]
    values = [on_redis.app.AsyncResult(child).get(timeout=20) for child in children]
    assert values == [14, 16]
    assert [on_redis.seen(child, "step") for child in children] == [["doubled"], ["doubled"]]
    assert on_redis.tables.run(result.id)["attempt"] == 2
    assert [child.id for child in result.children] == children


def test_the_broker_never_holds_a_message_with_an_eta(on_redis: Semantics) -> None:
    result = on_redis.task("durable", "retry").delay("delayed", 1)
    assert result.get(timeout=20) == [1, 1]
    with psycopg.connect(on_redis.tables.url) as connection:
        messages = connection.execute(
            "select convert_from(message, 'utf8')::jsonb -> 'headers' from durable.run"
        ).fetchall()
    assert {(headers["eta"], headers["expires"]) for (headers,) in messages} == {(None, None)}
