"""Calls of steps to a real server: one key at every try, and evidence that is stored with the step."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from calling import calls, libraries, run, with_httpx
from contending import step_write
from delivering import World, delivering
from inspecting import Worker, execute

from celery_durable.exceptions import LeaseLostError
from celery_durable.http import DurableTransport, redaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from answering import Server

    from celery_durable.store import Store


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


@libraries
def test_a_call_of_a_step_has_the_steps_key_and_is_kept_as_evidence(
    world: World, server: Server, post: Any
) -> None:
    run_id = run(world, lambda: post(f"{server.url}/charge?customer=7&page=2", json={"amount": 5}))

    assert world.result(run_id) == 200
    assert server.keys == [f"{run_id}/charge"]
    (call,) = calls(world, run_id)
    assert call["url"] == f"{server.url}/charge?customer=***&page=***"
    assert (call["step"], call["method"], call["status"], call["error"]) == ("charge", "POST", 200, None)
    assert call["idempotency_key"] == f"{run_id}/charge"
    assert call["request"]["body"] == '{"amount": 5}'
    assert call["response"]["body"] == '{"ok": true, "token": "***"}'
    assert 0 < call["seconds"] < 30


@libraries
def test_a_key_that_the_caller_has_chosen_stays(world: World, server: Server, post: Any) -> None:
    run_id = run(world, lambda: post(server.url, headers={"idempotency-key": "mine"}))

    assert server.keys == ["mine"]
    assert calls(world, run_id)[0]["idempotency_key"] == "mine"


@libraries
def test_outside_a_step_a_call_is_only_passed_on(world: World, server: Server, post: Any) -> None:
    assert post(server.url) == 200
    task = world.task(body_of(post, server.url))
    run_id = world.run(task)

    assert server.keys == [None, None]
    assert calls(world, run_id) == []


def body_of(post: Any, url: str) -> Any:
    def body() -> int:
        return int(post(url))

    return body


@libraries
def test_every_try_of_a_step_has_the_same_key_and_its_own_evidence(
    world: World, server: Server, post: Any
) -> None:
    server.refusals = 2

    def charge() -> int:
        status: int = post(server.url)
        if status != 200:
            raise ConnectionError
        return status

    run_id = run(world, charge, max_retries=3, default_retry_delay=0)

    assert server.keys == [f"{run_id}/charge"] * 3
    assert [call["status"] for call in calls(world, run_id)] == [503, 503, 200]


def test_further_calls_of_a_step_are_numbered_in_their_order(world: World, server: Server) -> None:
    def twice() -> None:
        for path in ("/a", "/b"):
            with_httpx(server.url + path)

    run_id = run(world, twice)

    assert server.keys == [f"{run_id}/charge", f"{run_id}/charge/2"]


def test_calls_in_a_steps_threads_are_told_by_what_they_send(world: World, server: Server) -> None:
    """Their order is another one at every try."""

    def fan_out() -> None:
        threads = [
            threading.Thread(target=with_httpx, args=(server.url,), kwargs={"json": number})
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(server.received) == 2:
            raise ConnectionError

    run_id = run(world, fan_out, max_retries=1, default_retry_delay=0)

    assert world.state(run_id)[0] == "succeeded"
    assert len(server.keys) == 4
    assert len(set(server.keys)) == 2


@libraries
def test_a_call_without_an_answer_is_kept_with_the_error_of_its_step(world: World, post: Any) -> None:
    run_id = run(world, lambda: post("http://user:secret@127.0.0.1:1/x?token=abc"))

    (call,) = calls(world, run_id)
    assert call["url"] == "http://127.0.0.1:1/x?token=***"
    assert call["status"] is None
    assert call["error"].endswith(("ConnectError", "ConnectionError"))
    assert "secret" not in str(call)


@libraries
def test_secrets_in_bodies_are_hidden_and_what_is_no_text_is_only_measured(
    world: World, server: Server, post: Any
) -> None:
    def several() -> None:
        post(
            server.url,
            json={"user": "ada", "password": "hush", "paid": [{"card_number": "no such 0815 number"}]},
        )
        post(server.url, data={"grant": "x", "client_secret": "hush"})
        post(f"{server.url}/picture")
        post(f"{server.url}/zipped")
        post(f"{server.url}/large")

    kept = calls(world, run(world, several))

    assert (
        kept[0]["request"]["body"] == '{"user": "ada", "password": "***", "paid": [{"card_number": "***"}]}'
    )
    assert kept[1]["request"]["body"] == "grant=x&client_secret=***"
    assert kept[2]["response"] == {"bytes": 5, "content_type": "image/png"}
    assert kept[3]["response"]["body"] == '{"ok": true, "token": "***"}'
    assert kept[4]["response"]["body"] == "x" * 2048 + "…"
    assert kept[4]["response"]["bytes"] == 10_000
    assert "hush" not in str(kept)
    assert "no such 0815 number" not in str(kept)


def test_bodies_may_be_left_out_and_the_last_word_is_the_callers(world: World, server: Server) -> None:
    def charge() -> None:
        with httpx.Client(transport=DurableTransport(bodies=False)) as client:
            client.post(server.url, json={"a": 1})
        redact = {"redact": lambda detail: {"method": detail["method"], "note": "\0none"}}
        with httpx.Client(transport=DurableTransport(**redact)) as client:
            client.post(server.url, json={"a": 1})

    first, second = calls(world, run(world, charge))

    assert "body" not in first["request"]
    assert "body" not in first["response"]
    assert (second.keys(), second["note"]) == ({"method", "note", "call"}, "none")


def test_a_streamed_answer_is_passed_on_piece_by_piece(world: World, server: Server) -> None:
    def stream() -> list[int]:
        with (
            httpx.Client(transport=DurableTransport()) as client,
            client.stream("GET", f"{server.url}/large") as response,
        ):
            return [len(chunk) for chunk in response.iter_bytes(4000)]

    run_id = run(world, stream)

    assert world.result(run_id) == [4000, 4000, 2000]
    assert calls(world, run_id)[0]["response"]["bytes"] == 10_000


def test_evidence_is_stored_once_also_when_the_answer_of_its_write_was_lost(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    write = step_write("charge", 1, calls=['{"call": "1"}', '{"call": "2"}'])

    for _ in range(2):
        store.runs.checkpoint(claim.key, claim.fence, write)

    assert [row["detail"]["call"] for row in execute(store, "select detail from durable.event")] == ["1", "2"]


def test_a_superseded_attempt_stores_no_evidence(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    execute(store, "update durable.run set fence = gen_random_uuid()")

    with pytest.raises(LeaseLostError):
        store.runs.checkpoint(claim.key, claim.fence, step_write("charge", 1, calls=['{"call": "1"}']))

    assert execute(store, "select detail from durable.event") == []


def test_a_step_that_need_not_be_flushed_keeps_its_evidence_too(world: World, server: Server) -> None:
    run_id = run(world, lambda: with_httpx(server.url), commit="async")

    assert len(calls(world, run_id)) == 1


def test_evidence_with_characters_that_postgres_refuses_is_stored_without_them(
    world: World, server: Server
) -> None:
    run_id = run(world, lambda: with_httpx(server.url, json={"a": "x\0y"}))

    assert world.state(run_id)[0] == "succeeded"
    assert calls(world, run_id)[0]["request"]["body"] == '{"a": "x\\u0000y"}'


@pytest.mark.parametrize(
    ("data", "kind", "encoding"),
    [
        (b"{cut off", "application/json", ""),
        (b"\xff\xfe", "text/plain", ""),
        (b"no gzip", "application/json", "gzip"),
        (b"{}", "application/json", "br"),
        (b"", "application/json", ""),
        (b"x" * (redaction.LARGEST + 1), "text/plain", ""),
    ],
)
def test_what_cannot_be_judged_is_not_kept(data: bytes, kind: str, encoding: str) -> None:
    assert redaction.body(data, kind, encoding, 100) is None
