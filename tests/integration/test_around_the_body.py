"""Tasks that end, or are sent, in front of their bodies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.waiting import eventually

from celery_durable.exceptions import ConfigurationError, PayloadTooLargeError

if TYPE_CHECKING:
    from harness.world import World
    from semantics.world import Semantics


def test_an_error_in_before_start_fails_the_run_and_its_message_is_not_repeated(odd: World) -> None:
    result = odd.app.tasks["never_ready"].apply_async(link_error=odd.app.tasks["on_error"].s())

    with pytest.raises(ValueError, match="not ready"):
        result.get(timeout=10)
    run = odd.tables.run(result.id)
    assert (run["state"], run["due"], run["unreported"]) == ("failed", None, False)
    assert "before_start" in run["traceback"]
    odd.send("plain", "behind it").get(timeout=10)
    assert odd.ledger.count("before_start", run=result.id) == 1
    assert odd.ledger.count("body", run=result.id) == 0
    assert odd.ledger.count("errback", result.id) == 1


def test_a_task_sent_by_name_whose_apply_async_sends_nothing_is_dropped(odd: World) -> None:
    result = odd.app.send_task("silent")

    (worker,) = odd.workers
    worker.wait_for_log(f"silent[{result.id}] has no row, and its apply_async makes none")
    assert [odd.send("plain", str(number)).get(timeout=10) for number in range(3)] == ["0", "1", "2"]
    assert worker.output.count(f"silent[{result.id}] has no row") == 1
    assert odd.tables.state(result.id) is None
    assert odd.ledger.count("body", "silent") == 0


@pytest.mark.parametrize("kwargs", [{"custommer": 7}, {"customer": 7, "blob": "x" * 200_000}])
def test_a_call_by_name_that_the_task_refuses_fails_for_whoever_waits(
    odd: World, kwargs: dict[str, Any]
) -> None:
    """There is no run to be executed: its key cannot be made, or it is too large."""
    result = odd.app.send_task("kept_apart", kwargs=kwargs, link_error=odd.app.tasks["on_error"].s())

    with pytest.raises((ConfigurationError, TypeError, PayloadTooLargeError)):
        result.get(timeout=10)
    assert result.state == "FAILURE"
    assert odd.tables.state(result.id) in ("failed", None)
    eventually(lambda: odd.ledger.count("errback", result.id) == 1)
    assert odd.ledger.count("body", run=result.id) == 0


def test_a_class_based_task_is_not_retried_where_the_setting_says_so(on_redis: Semantics) -> None:
    result = on_redis.task("durable", "counting").delay("no number")

    with pytest.raises(TypeError):
        result.get(timeout=10)
    assert on_redis.tables.outcomes(result.id) == ["failed"]
