"""Errors, arguments and values that cannot be stored as they are end the run once, and say why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import states
from harness.waiting import eventually
from oddities.tasks import ERRORS, LITERAL, VALUES
from oddities.world import MAX_PAYLOAD

from celery_durable.exceptions import PayloadTooLargeError, SerializationError

if TYPE_CHECKING:
    from celery.result import AsyncResult
    from harness.world import World


def over(world: World, result: AsyncResult[Any]) -> str:
    """Return the state of a result when it is final."""
    eventually(result.ready, what=lambda: f"{result.id}, which is {result.state}, to be over")
    assert world.tables.run(result.id)["finished_at"] is not None
    return str(result.state)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_that_cannot_be_stored_as_it_is_fails_the_run_once(odd: World, kind: str) -> None:
    result = odd.send("raises", kind)

    assert over(odd, result) == states.FAILURE
    assert isinstance(result.result, Exception)
    assert "raises" in str(result.traceback)
    assert odd.ledger.count("body", run=result.id) == 1
    assert odd.tables.outcomes(result.id) == ["failed"]
    (attempt,) = odd.tables.attempts(result.id)
    assert attempt["error"].startswith("MuteError" if kind == "has no text" else "ValueError")


@pytest.mark.parametrize(("outcome", "state"), [("return", "SUCCESS"), ("raise", "FAILURE")])
def test_arguments_that_only_another_serializer_carries_are_shown_with_the_extended_result(
    odd: World, outcome: str, state: str
) -> None:
    result = odd.send("takes", 1 + 2j, outcome, serializer=LITERAL)

    assert over(odd, result) == state
    assert "(1+2j)" in str(result.args)
    assert odd.ledger.wait_for("body", run=result.id).detail == "(1+2j)"
    assert len(odd.tables.attempts(result.id)) == 1


def test_a_body_sees_the_error_its_step_raised_also_when_its_text_is_no_unicode(odd: World) -> None:
    result = odd.send("sees")

    assert result.get(timeout=10) == [["ValueError", ascii(ValueError("bad \udcff"))]] * 2
    assert odd.tables.outcomes(result.id) == ["retry", "succeeded"]


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("what", ["tags", "progress"])
def test_tags_and_progress_that_are_no_json_fail_the_run_and_it_is_not_retried(
    odd: World, what: str, kind: str
) -> None:
    result = odd.send("tells", what, kind)

    with pytest.raises(SerializationError, match="JSON"):
        result.get(timeout=10)
    assert odd.ledger.count("body", run=result.id) == 1
    assert odd.tables.outcomes(result.id) == ["failed"]


def test_arguments_larger_than_allowed_are_refused_before_there_is_a_run(odd: World) -> None:
    with pytest.raises(PayloadTooLargeError, match="Pass a path, a URL or an id instead") as error:
        odd.send("plain", "x" * MAX_PAYLOAD, task_id="too-large")

    assert error.value.facts["limit"] == MAX_PAYLOAD < error.value.facts["size"]
    assert odd.tables.state("too-large") is None


def test_a_result_larger_than_allowed_fails_the_run_which_is_not_retried(odd: World) -> None:
    assert odd.send("returns", 10).get(timeout=10) == "x" * 10

    result = odd.send("returns", MAX_PAYLOAD)

    with pytest.raises(PayloadTooLargeError, match="The result of returns is 100,002 bytes"):
        result.get(timeout=10)
    assert odd.ledger.count("body", run=result.id) == 1
    assert odd.tables.outcomes(result.id) == ["failed"]
