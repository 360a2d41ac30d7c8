"""Bodies that pass in parts: what is kept of them is what passed, and nobody's stream is read for it."""

from __future__ import annotations

import asyncio
import gc
import io
import pickle
import weakref
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
from calling import calls, in_async_httpx, run, run_async, with_httpx, with_requests
from delivering import World, delivering

from celery_durable.http import AsyncDurableTransport, DurableAdapter, DurableTransport, redaction
from celery_durable.http.passing import Passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from answering import Server

    from celery_durable.store import Store

PARTS = [b'{"amount": 5, ', b'"password": "hush"}']
SENT = {"bytes": 33, "content_type": "application/json", "body": '{"amount": 5, "password": "***"}'}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.mount("http://", DurableAdapter())
        yield made


async def in_time() -> AsyncIterator[bytes]:
    for part in PARTS:
        yield part


def test_a_body_that_comes_from_a_generator_is_kept_as_others_are(world: World, server: Server) -> None:
    sends: list[Callable[[], Any]] = [
        lambda: with_httpx(server.url, content=iter(PARTS), headers=JSON),
        lambda: with_requests(server.url, data=iter(PARTS), headers=JSON),
        lambda: with_requests(server.url, data=iter([part.decode() for part in PARTS]), headers=JSON),
        lambda: with_requests(server.url, data=io.BytesIO(b"".join(PARTS)), headers=JSON),
        lambda: with_requests(server.url, data=bytearray(b"".join(PARTS)), headers=JSON),
        lambda: asyncio.run(in_async_httpx(server.url, content=in_time(), headers=JSON)),
    ]
    for number, send in enumerate(sends, start=1):
        (call,) = calls(world, run(world, send))
        assert call["request"] == SENT, number
        assert server.received[-1].body == b"".join(PARTS)


def test_an_async_step_keeps_what_its_generator_sends(world: World, server: Server) -> None:
    async def send() -> None:
        await in_async_httpx(server.url, content=in_time(), headers=JSON)

    assert calls(world, run_async(world, send))[0]["request"] == SENT


def test_a_form_with_files_is_measured(world: World, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * 300_000)

    def forms() -> None:
        with file.open("rb") as opened:
            with_httpx(server.url, files={"file": opened}, data={"password": "hush"})
        with_requests(server.url, files={"file": b"x" * 300_000}, data={"password": "hush"})

    kept = calls(world, run(world, forms))

    assert [call["request"]["bytes"] for call in kept] == [len(one.body) for one in server.received]
    assert [call["request"].keys() for call in kept] == [{"bytes", "content_type"}] * 2


def test_a_body_that_a_redirect_sends_again_is_kept_again(
    world: World, server: Server, session: requests.Session
) -> None:
    server.elsewhere["/old"] = "/new"

    def again() -> None:
        with httpx.Client(transport=DurableTransport(), follow_redirects=True) as client:
            client.post(f"{server.url}/old", json={"amount": 5})
            client.post(f"{server.url}/old", files={"file": b"hello"})
        session.post(f"{server.url}/old", data=io.BytesIO(b"".join(PARTS)), headers=JSON)

    kept = calls(world, run(world, again))

    assert [one.path for one in server.received] == ["/old", "/new"] * 3
    assert [call["request"]["bytes"] for call in kept] == [len(one.body) for one in server.received]
    assert [call["request"].get("body") for call in kept] == [
        *['{"amount": 5}'] * 2,
        *[None] * 2,
        *[SENT["body"]] * 2,
    ]


def test_where_a_body_cannot_be_measured_its_size_is_unknown_and_not_zero(
    world: World, server: Server, session: requests.Session
) -> None:
    def unknown() -> None:
        session.post(server.url, data=io.StringIO("some text"))
        session.get(server.url, stream=True).close()
        with httpx.Client(transport=DurableTransport()) as client, client.stream("GET", server.url):
            pass

    sent, unread, also_unread = calls(world, run(world, unknown))

    assert sent["request"]["bytes"] is None
    assert server.received[0].body == b"some text"
    assert (unread["request"]["bytes"], unread["response"]["bytes"]) == (0, None)
    assert (also_unread["request"]["bytes"], also_unread["response"]["bytes"]) == (0, None)


def test_a_streamed_answer_of_requests_is_kept_as_far_as_it_is_read(
    world: World, server: Server, session: requests.Session
) -> None:
    lines = "".join(f"line {number} ü\n" for number in range(100)).encode()
    server.answers["/text"] = lines
    found: list[Any] = []

    def read() -> None:
        found.append(b"\n".join(session.get(f"{server.url}/text", stream=True).iter_lines()) + b"\n")
        response = session.get(f"{server.url}/zipped", stream=True)
        found.append(response.json())
        assert response.content == b"".join(response.iter_content(7))  # which are no more bytes than before
        with session.get(f"{server.url}/text", stream=True) as partly:
            found.append(next(partly.iter_content(10)))
        with session.get(f"{server.url}/text", stream=True) as text:
            text.encoding = "utf-8"
            found.append("".join(text.iter_content(3, decode_unicode=True)))
        found.append(pickle.loads(pickle.dumps(session.get(f"{server.url}/zipped", stream=True))).json())

    kept = calls(world, run(world, read))

    answer = {"ok": True, "token": "t0psecret"}
    assert found == [lines, answer, lines[:10], lines.decode(), answer]
    assert [call["response"]["bytes"] for call in kept] == [len(lines), 34, 10, len(lines), 34]
    assert kept[1]["response"]["body"] == '{"ok": true, "token": "***"}'


def test_a_streamed_answer_that_nobody_holds_gives_its_connection_back_at_once(
    world: World, server: Server, session: requests.Session
) -> None:
    def drop() -> bool:
        response = session.get(server.url, stream=True)
        gone = weakref.ref(response)
        gc.disable()
        try:
            del response
            return gone() is None
        finally:
            gc.enable()

    run_id = run(world, drop)

    assert len(calls(world, run_id)) == 1
    assert world.result(run_id) is True


def fails() -> Iterator[bytes]:
    yield b"some"
    raise KeyError("no more")


def test_a_generator_that_fails_fails_as_it_would_without_us(world: World, server: Server) -> None:
    def send() -> None:
        for post, name in ((with_httpx, "content"), (with_requests, "data")):
            with pytest.raises(KeyError, match="no more"):
                post(server.url, **{name: fails()})

    kept = calls(world, run(world, send))

    assert [(call["error"], call["request"]["bytes"]) for call in kept] == [("KeyError", 4)] * 2


def test_a_request_is_as_it_was_when_it_has_been_sent(world: World, server: Server) -> None:
    def send() -> bool:
        with httpx.Client(transport=DurableTransport()) as client:
            request = client.build_request("POST", server.url, content=iter(PARTS))
            stream = request.stream
            client.send(request)
            kept = request.stream is stream
        with requests.Session() as session:
            session.mount("http://", DurableAdapter())
            body = iter(PARTS)
            return kept and session.post(server.url, data=body).request.body is body

    run_id = run(world, send)

    assert len(calls(world, run_id)) == 2
    assert world.result(run_id) is True


def test_a_transport_that_sends_again_is_measured_by_what_it_sent_last(world: World, server: Server) -> None:
    class Twice(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await (await super().handle_async_request(request)).aread()
            return await super().handle_async_request(request)

    async def send() -> None:
        async with httpx.AsyncClient(transport=AsyncDurableTransport(Twice())) as client:
            await client.post(server.url, files={"file": b"hello"})

    (call,) = calls(world, run(world, lambda: asyncio.run(send())))

    assert [len(one.body) for one in server.received] == [call["request"]["bytes"]] * 2


def test_what_is_too_large_to_be_judged_is_counted_and_not_held() -> None:
    passing = Passing()
    passing.begin()
    for _ in range(3):
        passing.part(b"x" * (redaction.LARGEST // 2))
    assert (passing.size, passing.data) == (redaction.LARGEST // 2 * 3, b"")

    passing.part(b"x")
    passing.part(object())
    passing.part(b"x")
    assert passing.size is None
