"""Calls that a step makes side by side: each has its own key, and the same one at every try."""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from calling import ONCE_MORE, calls, in_async_httpx, libraries, run, run_async, with_httpx, with_requests
from delivering import World, delivering

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from answering import Server

    from celery_durable.store import Store

sync_libraries = pytest.mark.parametrize("post", [with_httpx, with_requests])


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


class Orders:
    """The numbers 0 to 2 at the first try, backwards at the second one, which is the last."""

    def __init__(self) -> None:
        self._tries = 0

    def __iter__(self) -> Iterator[int]:
        self._tries += 1
        return iter((0, 1, 2) if self._tries == 1 else (2, 1, 0))

    def end(self) -> None:
        if self._tries == 1:
            raise ConnectionError


def in_bare_threads(work: Callable[[int], Any], orders: Orders) -> None:
    """Do work in a thread of its own for each order, one after the other, so that they come in this order."""
    for order in orders:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(work, order).result(10)
    orders.end()


def keys_of(server: Server) -> dict[bytes, list[str | None]]:
    """Return the keys with which each order was sent."""
    found: dict[bytes, list[str | None]] = {}
    for one in server.received:
        content = re.search(rb"order.{0,4}\d", one.body)
        found.setdefault(content[0] if content else one.body, []).append(one.key)
    return found


def each_has_one_key_of_its_own(server: Server, tries: int = 2) -> bool:
    found = keys_of(server)
    single = {keys[0] for keys in found.values() if len(keys) == tries and len(set(keys)) == 1}
    return len(found) == len(single) == 3 and None not in single


def test_calls_of_several_tasks_in_an_async_step_are_told_by_what_they_send(
    world: World, server: Server
) -> None:
    orders = Orders()

    async def charge() -> None:
        await asyncio.gather(*(in_async_httpx(server.url, json={"order": order}) for order in orders))
        orders.end()

    run_id = run_async(world, charge, **ONCE_MORE)

    assert world.state(run_id)[0] == "succeeded"
    assert each_has_one_key_of_its_own(server)


def test_the_calls_of_an_async_steps_own_task_are_numbered(world: World, server: Server) -> None:
    async def charge() -> None:
        for order in range(2):
            await in_async_httpx(server.url, json={"order": order})

    run_id = run_async(world, charge)

    assert server.keys == [f"{run_id}/charge", f"{run_id}/charge/2"]


def test_calls_of_a_sync_step_in_an_async_body_are_numbered(world: World, server: Server) -> None:
    step = durable.step(name="charge")(lambda: [with_httpx(server.url) for _ in range(2)])

    async def body() -> Any:
        return step()

    run_id = world.run(world.task(body))

    assert server.keys == [f"{run_id}/charge", f"{run_id}/charge/2"]


def test_calls_of_several_tasks_on_a_loop_of_a_sync_steps_own_are_told_by_what_they_send(
    world: World, server: Server
) -> None:
    orders = Orders()

    async def several() -> None:
        await in_async_httpx(server.url, json={"first": True})
        await asyncio.gather(*(in_async_httpx(server.url, json={"order": order}) for order in orders))
        orders.end()

    run_id = run(world, lambda: asyncio.run(several()), **ONCE_MORE)

    assert [one.key for one in server.received if b"first" in one.body] == [f"{run_id}/charge"] * 2
    server.received = [one for one in server.received if b"first" not in one.body]
    assert each_has_one_key_of_its_own(server)


@sync_libraries
def test_calls_in_threads_that_have_the_runs_context_are_told_by_what_they_send(
    world: World, server: Server, post: Any
) -> None:
    orders = Orders()

    def charge(order: int) -> None:
        post(server.url, json={"order": order})

    def several() -> None:
        for order in orders:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(copy_context().run, charge, order).result(10)
        orders.end()

    run_id = run(world, several, **ONCE_MORE)

    assert world.state(run_id)[0] == "succeeded"
    assert each_has_one_key_of_its_own(server)


def test_calls_that_the_loops_own_threads_make_for_an_async_step_have_keys_in_every_run(
    world: World, server: Server
) -> None:
    async def charge() -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, with_httpx, server.url)

    runs = [run_async(world, charge) for _ in range(2)]

    assert [str(key).partition("/")[0] for key in server.keys] == runs
    assert [len(calls(world, run_id)) for run_id in runs] == [1, 1]


def test_a_call_in_a_thread_of_which_the_async_step_is_not_known_is_refused(
    world: World, server: Server
) -> None:
    async def charge() -> None:
        with ThreadPoolExecutor(1) as threads:
            await asyncio.get_running_loop().run_in_executor(threads, with_httpx, server.url)

    run_id = run_async(world, charge)

    assert "asyncio.to_thread" in str(world.result(run_id))
    assert server.received == []


def test_a_call_in_a_thread_that_one_of_several_steps_has_started_is_refused(
    world: World, server: Server
) -> None:
    @durable.step
    def charge(order: int) -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(with_httpx, f"{server.url}/{order}").result(10)

    def several() -> Any:
        return durable.gather(charge.s(0), charge.s(1))

    run_id = world.run(world.task(several))

    assert "contextvars.copy_context" in str(world.result(run_id))
    assert server.received == []


@sync_libraries
def test_a_call_in_a_thread_that_is_older_than_every_run_is_only_passed_on(
    world: World, server: Server, post: Any
) -> None:
    """It may refresh a token, for nobody's run in particular."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result(10)
        run_id = run(world, lambda: threads.submit(post, server.url).result(10))

    assert world.result(run_id) == 200
    assert server.keys == [None]
    assert calls(world, run_id) == []


@sync_libraries
def test_the_boundary_of_a_form_with_files_is_drawn_anew_at_every_try_and_does_not_count(
    world: World, server: Server, post: Any
) -> None:
    def charge(order: int) -> None:
        post(server.url, files={"file": ("order.txt", io.BytesIO(b"order %d" % order))})

    orders = Orders()
    run_id = run(world, lambda: in_bare_threads(charge, orders), **ONCE_MORE)

    assert world.state(run_id)[0] == "succeeded"
    assert each_has_one_key_of_its_own(server)


def test_a_file_that_requests_can_read_twice_tells_its_call_and_arrives(world: World, server: Server) -> None:
    def charge(order: int) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"head order %d" % order)
            file.seek(5)
            with_requests(server.url, data=file)

    orders = Orders()
    run(world, lambda: in_bare_threads(charge, orders), **ONCE_MORE)

    assert each_has_one_key_of_its_own(server)
    assert {one.body for one in server.received} == {b"order 0", b"order 1", b"order 2"}


class ReadOnce(io.RawIOBase):
    """What can be read and not taken back, as a pipe."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int = -1) -> bytes:
        del size
        data, self._data = self._data, b""
        return data


def pieces() -> Iterator[bytes]:
    yield b"order "
    yield b"1"


read_once = pytest.mark.parametrize(
    ("post", "options"),
    [
        (with_httpx, lambda: {"content": pieces()}),
        (with_httpx, lambda: {"files": {"file": ReadOnce(b"order 1")}}),
        (with_requests, lambda: {"data": pieces()}),
    ],
    ids=["httpx", "httpx-files", "requests"],
)


@read_once
def test_a_body_that_can_be_read_only_once_cannot_tell_its_call_and_is_refused(
    world: World, server: Server, post: Any, options: Callable[[], Any]
) -> None:
    orders = Orders()
    run_id = run(world, lambda: in_bare_threads(lambda _: post(server.url, **options()), orders))

    problem = str(world.result(run_id))
    assert "step of its own" in problem
    assert "Idempotency-Key" in problem
    assert server.received == []


def test_a_call_with_a_key_of_the_callers_own_is_not_counted(world: World, server: Server) -> None:
    def several() -> None:
        with_httpx(server.url, headers={"Idempotency-Key": "mine"})
        with_httpx(server.url)

    run_id = run(world, several)

    assert server.keys == ["mine", f"{run_id}/charge"]


@read_once
def test_a_body_that_can_be_read_only_once_is_sent_with_the_callers_own_key(
    world: World, server: Server, post: Any, options: Callable[[], Any]
) -> None:
    def charge(order: int) -> None:
        post(server.url, headers={"Idempotency-Key": f"mine-{order}"}, **options())

    orders = Orders()
    run(world, lambda: in_bare_threads(charge, orders), **ONCE_MORE)

    assert server.keys == ["mine-0", "mine-1", "mine-2", "mine-2", "mine-1", "mine-0"]


@libraries
def test_identical_calls_side_by_side_are_numbered_in_the_same_way_at_every_try(
    world: World, server: Server, post: Any
) -> None:
    orders = Orders()
    gate = threading.Barrier(3)

    def charge() -> None:
        gate.wait(10)
        post(server.url, json={"order": 1})

    def several() -> None:
        threads = [threading.Thread(target=charge) for _ in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        orders.end()

    run(world, several, **ONCE_MORE)

    first, second = set(server.keys[:3]), set(server.keys[3:])
    assert first == second
    assert sorted(str(key)[-2:] for key in first if str(key)[-2] == "/") == ["/2", "/3"]
    assert len(first) == 3
