"""On RabbitMQ: what depends on the broker, compared with plain tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from celery import chain, chord, states
from celery.exceptions import Reject, TaskRevokedError
from harness.waiting import eventually
from semantics.registry import KINDS

if TYPE_CHECKING:
    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(("name", "args"), [("add", [2, 3]), ("fail", ["sorry"]), ("ignore", [])])
def test_an_outcome_calls_the_same_hooks_and_signals(
    on_rabbitmq: Semantics, name: str, args: list[object]
) -> None:
    plain, durable = (on_rabbitmq.task(kind, name).apply_async(args) for kind in KINDS)
    assert on_rabbitmq.story(durable.id) == on_rabbitmq.story(plain.id)


@both
def test_monitors_hear_of_a_task(on_rabbitmq: Semantics, kind: str) -> None:
    result = on_rabbitmq.task(kind, "add").delay(1, 2)
    events = on_rabbitmq.events(result.id, "task-sent", "task-succeeded")
    assert sorted(events) == ["task-received", "task-sent", "task-started", "task-succeeded"]


@both
def test_retries_and_countdowns_run_again(on_rabbitmq: Semantics, kind: str) -> None:
    assert on_rabbitmq.task(kind, "retry").delay("delayed", 3).get(timeout=20) == [1, 3]
    assert on_rabbitmq.task(kind, "auto").delay(2).get(timeout=20) == 2
    assert on_rabbitmq.task(kind, "add").apply_async((1, 2), countdown=0.3).get(timeout=20) == 3


@both
@pytest.mark.parametrize("priority", [None, 0, 9])
def test_priority_is_kept_over_a_retry(on_rabbitmq: Semantics, kind: str, priority: int | None) -> None:
    about = on_rabbitmq.task(kind, "retry").apply_async(("described",), priority=priority).get(timeout=20)
    assert about["retries"] == 1
    assert about["priority"] == (priority or 0)


@both
def test_canvas_ends_with_the_right_value(on_rabbitmq: Semantics, kind: str) -> None:
    add, total = on_rabbitmq.task(kind, "add"), on_rabbitmq.task(kind, "total")
    canvas = chain(add.s(1, 1), chord([add.s(1), add.s(2)], total.s()), add.s(10))
    assert canvas.apply_async().get(timeout=30) == 17
    assert on_rabbitmq.task(kind, "replace").delay("chain").get(timeout=30) == 7


@both
def test_links_and_error_links_are_called(on_rabbitmq: Semantics, kind: str) -> None:
    add, fail, record, errback = (
        on_rabbitmq.task(kind, name) for name in ("add", "fail", "record", "errback")
    )
    result = add.apply_async((1, 2), link=record.s())
    assert result.get(timeout=20) == 3
    (child,) = eventually(lambda: result.children)
    assert child.get(timeout=20) == [3]
    failed = fail.apply_async(("sorry",), link_error=errback.s())
    eventually(lambda: on_rabbitmq.seen(failed.id, "errback"))


@both
def test_rejected_revoked_and_terminated_tasks_end(on_rabbitmq: Semantics, kind: str) -> None:
    with pytest.raises(Reject):
        on_rabbitmq.task(kind, "reject").delay(False).get(timeout=20)  # noqa: FBT003
    revoked = on_rabbitmq.task(kind, "add").apply_async((1, 2), countdown=1)
    revoked.revoke()
    on_rabbitmq.gates.close(f"terminated-{kind}")
    terminated = on_rabbitmq.task(kind, "wait").delay(f"terminated-{kind}")
    eventually(lambda: on_rabbitmq.seen(terminated.id, "waiting"))
    terminated.revoke(terminate=True)
    for result in (revoked, terminated):
        with pytest.raises(TaskRevokedError):
            result.get(timeout=20)
        assert result.state == states.REVOKED
    on_rabbitmq.gates.open(f"terminated-{kind}")


@both
def test_a_task_sent_by_name_runs(on_rabbitmq: Semantics, kind: str) -> None:
    assert on_rabbitmq.app.send_task(f"{kind}.add", (2, 3)).get(timeout=20) == 5
