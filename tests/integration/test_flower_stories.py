"""What a run's page and JSON tell of runs that a worker has really executed: tries, calls, compensations."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

import pytest
from answering import answering
from harness.flower import ADA, BASIC, FlowerServer, flower, flower_world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.world import World


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with flower_world(postgres_url) as made:
        made.worker()
        yield made


@pytest.fixture(scope="module")
def basic(world: World) -> Iterator[FlowerServer]:
    with flower(world, BASIC) as server:
        yield server


def told(server: FlowerServer, run_id: str, auth: tuple[str, str] | None = ADA) -> tuple[Any, str]:
    """Return a run's JSON, and the words of its page in one line; without a login the page alone."""
    with server.client(auth) as client:
        page = client.get(f"/durable/run/{run_id}")
        assert page.status_code == 200
        words = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page.text).split()))
        return client.get(f"/api/durable/run/{run_id}").json() if auth else None, words


def test_why_a_step_failed_so_often_is_said_in_one_line_and_each_try_has_its_time(
    world: World, basic: FlowerServer
) -> None:
    result = world.send("persistent", 4)
    result.get(timeout=30)

    run, page = told(basic, result.id)

    moody = next(step for step in run["steps"] if step["key"] == "moody")
    assert [one["error"] for one in moody["earlier"]] == [f"ConnectionError: try {n}" for n in range(1, 5)]
    times = [one["at"] for one in moody["earlier"]]
    assert times == sorted(set(times))
    assert run["tried_again"]["steps"] == [
        {"step": "moody", "failures": 4, "reasons": [{"count": 4, "reason": "ConnectionError: try …"}]}
    ]
    assert re.search("Step moody failed 4 times: 4. ConnectionError: try …", page)


def test_external_calls_are_told_with_their_step_answer_and_redacted_bodies(
    world: World, basic: FlowerServer
) -> None:
    with answering() as server:
        result = world.send("calling", f"{server.url}?session=s3cret")
        result.get(timeout=30)

    run, page = told(basic, result.id)

    (call,) = run["calls"]
    assert (call["step"], call["method"], call["status"], call["error"]) == ("call", "POST", 200, None)
    assert call["url"].endswith("?session=***")
    assert call["request"]["body"] == '{"amount": 5}'
    assert call["idempotency_key"] == f"{result.id}/call"
    assert "External calls 1 call" in page
    assert '{"amount": 5}' in page
    assert "Events" not in page  # they are there once
    assert "s3cret" not in page


def test_where_payloads_are_hidden_the_bodies_of_calls_are_only_measured(world: World) -> None:
    with answering() as server:
        result = world.send("calling", server.url)
        result.get(timeout=30)
    with flower(world) as opened:
        _, page = told(opened, result.id, auth=None)
    assert "amount" not in page
    assert "Request 12 B application/json hidden" in page
    with flower(world, BASIC, "--durable_payloads=hide") as hiding:
        run, _ = told(hiding, result.id)
    assert run["calls"][0]["request"] == {"bytes": 12, "content_type": "application/json", "body": "[hidden]"}


def test_a_redaction_function_has_the_last_word_on_calls_and_failed_tries(world: World) -> None:
    with answering() as server:
        called = world.send("calling", server.url)
        called.get(timeout=30)
    tried = world.send("persistent", 2)
    tried.get(timeout=30)
    with flower(world, BASIC, "--durable_redact=flowering:nothing_at_all") as server:
        run, page = told(server, called.id)
        assert run["calls"][0]["url"] == ""
        assert "amount" not in page
        run, page = told(server, tried.id)
        assert {one["error"] for step in run["steps"] for one in step["earlier"]} == {"gone"}
        assert "ConnectionError" not in page


def test_what_was_taken_back_is_told_in_its_order(world: World, basic: FlowerServer) -> None:
    result = world.send("journey", ["a", "b", "fails"])
    result.get(timeout=30, propagate=False)

    run, page = told(basic, result.id)

    rollback = run["rollback"]
    assert (rollback["ends_as"], rollback["over"], rollback["sentence"]) == (
        "failed",
        True,
        "All 2 compensations are made",
    )
    assert [(one["name"], one["outcome"], one["tries"]) for one in rollback["compensations"]] == [
        ("take_back#2", "made", 1),
        ("take_back", "made", 1),
    ]
    assert "Taken back All 2 compensations are made" in page
    assert page.index('take_back#2 {"name":"b"}') < page.index('take_back {"name":"a"}')
    assert "taken back: Fatal: no way on" in page


def test_what_is_still_to_be_taken_back_is_told_while_it_happens(world: World, basic: FlowerServer) -> None:
    world.gates.close("undo a")
    result = world.send("journey", ["a", "b", "fails"])
    world.ledger.wait_for("start", "undo a", result.id)

    run, page = told(basic, result.id)

    world.gates.open("undo a")
    assert [one["outcome"] for one in run["rollback"]["compensations"]] == ["made", "left"]
    assert "1 of 2 compensations is made so far ; then the run is failed" in page.replace(
        "so far;", "so far ;"
    )
    assert "to come" in page


def test_a_run_that_ended_well_has_nothing_taken_back(world: World, basic: FlowerServer) -> None:
    result = world.send("journey", ["a", "b"])
    result.get(timeout=30)

    run, page = told(basic, result.id)

    assert (run["rollback"], run["calls"], run["tried_again"]["steps"]) == (None, [], [])
    assert "Taken back" not in page
    assert "External calls" not in page
