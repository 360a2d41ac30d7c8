"""What goes wrong while evidence is made costs the evidence, and never the step whose call succeeded."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from calling import calls, libraries, run, with_httpx, with_requests
from delivering import World, delivering

from celery_durable.http import DurableTransport
from celery_durable.http.evidence import Call, Evidence
from celery_durable.limits import _ExpiredError
from celery_durable.operations import Runs
from celery_durable.operations.calls import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from answering import Server

    from celery_durable.store import Store

DEEP = b"[" * 3000 + b"]" * 3000


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


def redacting(url: str, redact: Any) -> int:
    with httpx.Client(transport=DurableTransport(redact=redact)) as client:
        return client.post(url, json={"amount": 5}).status_code


@libraries
def test_what_is_too_deep_to_be_judged_is_only_measured(world: World, server: Server, post: Any) -> None:
    server.answers["/deep"] = DEEP
    headers = {"Content-Type": "application/json"}
    sent = {"data": DEEP} if post.__name__ == "with_requests" else {"content": DEEP}

    run_id = run(world, lambda: post(f"{server.url}/deep", headers=headers, **sent))

    assert world.result(run_id) == 200
    (call,) = calls(world, run_id)
    assert call["response"] == {"bytes": 6000, "content_type": "application/json"}
    assert call["request"] == {"bytes": 6000, "content_type": "application/json"}


@libraries
def test_an_answer_with_half_a_surrogate_pair_which_postgres_refuses_is_kept_without_it(
    world: World, server: Server, post: Any
) -> None:
    server.answers["/half"] = b'{"name": "x\\ud800y"}'

    run_id = run(world, lambda: post(f"{server.url}/half"))

    assert world.result(run_id) == 200
    assert calls(world, run_id)[0]["response"]["body"] == '{"name": "x?y"}'


def test_headers_in_bytes_which_requests_takes_are_read_as_well(world: World, server: Server) -> None:
    headers = {"Content-Type": b"application/json", "Idempotency-Key": b"mine"}

    run_id = run(world, lambda: with_requests(server.url, data=b'{"pin": 1}', headers=headers))

    assert world.result(run_id) == 200
    assert server.keys == ["mine"]
    (call,) = calls(world, run_id)
    assert (call["idempotency_key"], call["request"]["body"]) == ("mine", '{"pin": "***"}')


def raises(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("no such field")


def wrong(_: dict[str, Any]) -> Any:
    return ["a list"]


def not_storable(detail: dict[str, Any]) -> dict[str, Any]:
    return {**detail, "factor": float("nan")}


def endless(detail: dict[str, Any]) -> dict[str, Any]:
    detail["itself"] = detail
    return detail


@pytest.mark.parametrize("redact", [raises, wrong, not_storable, endless])
def test_a_redaction_that_fails_is_logged_once_and_leaves_what_was_measured(
    world: World, server: Server, redact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "celery_durable.http"):
        run_id = run(world, lambda: redacting(f"{server.url}/charge?customer=7", redact))

    assert world.result(run_id) == 200
    (call,) = calls(world, run_id)
    assert call.keys() == {"call", "step", "method", "url", "status", "error", "seconds"}
    assert (call["method"], call["status"], call["url"]) == ("POST", 200, f"{server.url}/charge")
    (record,) = caplog.records
    assert record.exc_info is not None


def test_of_a_call_that_is_redacted_away_nothing_is_kept_but_that_there_was_one(
    world: World, server: Server
) -> None:
    run_id = run(world, lambda: redacting(server.url, lambda _: None))

    assert world.result(run_id) == 200
    (call,) = calls(world, run_id)
    assert (call.keys(), call["step"]) == ({"call", "step"}, "charge")
    (shown,) = calls_of(Runs(world.app).get(run_id))
    assert (shown.kept, shown.failed) == (False, False)


def test_a_call_that_a_time_limit_has_stopped_names_the_public_error() -> None:
    """In a thread the limit interrupts by an error of its own."""
    call = Call(Evidence(), "charge", "key", "POST", "http://127.0.0.1/")
    call.failed(_ExpiredError())

    assert json.loads(call.as_json())["error"] == "StepTimeLimitError"


def test_secrets_in_json_that_is_sent_as_text_are_hidden_and_other_text_stays(
    world: World, server: Server
) -> None:
    def several() -> None:
        for content in ('{"password": "hush"}', "the password is {1}", "[1"):
            with_httpx(server.url, content=content, headers={"Content-Type": "text/plain"})

    kept = calls(world, run(world, several))

    assert [call["request"]["body"] for call in kept] == ['{"password": "***"}', "the password is {1}", "[1"]
