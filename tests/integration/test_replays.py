"""What a run's body is given again when it executes again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import celery_durable as durable

if TYPE_CHECKING:
    from harness.world import World


def test_a_resumed_run_is_given_the_id_of_the_child_that_it_has_started(odd: World) -> None:
    result = odd.send("spawns")
    with pytest.raises(durable.Fatal):
        result.get(timeout=10)
    (first,) = odd.ledger.entries("child", run=result.id)

    durable.Runs(odd.app).resume(result.id)
    odd.tables.wait_for_state(result.id, "succeeded")

    assert odd.app.AsyncResult(result.id).get(timeout=10) == first.detail
    assert odd.app.AsyncResult(first.detail).get(timeout=10) == "child"
    assert odd.tables.rows("select id from durable.run where parent = %s", result.id) == [
        {"id": first.detail}
    ]


def test_the_time_before_steps_that_are_written_twice_is_the_same_at_the_replay(odd: World) -> None:
    result = odd.send("moments")

    replayed = result.get(timeout=10)
    (first, second) = odd.ledger.entries("drawn", run=result.id)
    assert replayed == second.detail
    # The last one was drawn after the last checkpoint: nothing has stored it.
    assert second.detail[:2] == first.detail[:2]


def test_a_child_that_was_due_before_it_is_started_is_sent_at_once(odd: World) -> None:
    child = odd.send("late").get(timeout=10)

    assert odd.app.AsyncResult(child).get(timeout=10) == "late"
