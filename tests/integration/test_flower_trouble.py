"""Postgres slow, silent, away and back, and a Flower that may only read: nothing runs, leaks or hangs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from harness.flower import ADA, BASIC, FlowerServer, flower, flower_world
from harness.proxy import Proxy
from harness.waiting import eventually
from inspecting import Worker, execute, open_transaction

from celery_durable.tokens import Token, sign

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from harness.world import World

    from celery_durable.store import Store

ACTION = {"X-Durable-Action": "1"}
SECRET = "a secret that is long enough"
PAGES = ("/durable", "/durable/overview", "/durable/run/story", "/durable?part=live")
JSON = (
    "/api/durable/runs",
    "/api/durable/counts",
    "/api/durable/run/story",
    "/durable/run/story/payload?part=result",
    "/durable/run/story/raw?part=result",
    "/durable/run/story/state?step=fetch",
)
PATIENCE = 0.5  # seconds that a page waits for Postgres
SOON = 15.0  # seconds within which everything together is answered, on a busy machine


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with flower_world(postgres_url, durable_signal_secret=SECRET) as made:
        yield made


@pytest.fixture(scope="module")
def store(world: World) -> Store:
    backend: Any = world.app.backend
    return backend.store


@pytest.fixture(autouse=True)
def story(store: Store) -> Iterator[None]:
    """A failed run with a step."""
    worker = Worker(store)
    claim = worker.start("story")
    worker.step(claim, "fetch", 1)
    worker.fail(claim)
    yield
    execute(store, "delete from durable.run")


@pytest.fixture
def proxy(world: World) -> Iterator[Proxy]:
    backend: Any = world.app.backend
    made = Proxy(backend.url)
    yield made
    made.close()


@pytest.fixture
def behind(world: World, proxy: Proxy) -> Iterator[FlowerServer]:
    """A Flower whose wire to Postgres can be cut."""
    options = (f"--durable_dsn={proxy.url}", f"--durable_timeout={PATIENCE}", "--durable_poll=0.2")
    with flower(world, BASIC, *options) as server:
        yield server


def resume(client: httpx.Client) -> httpx.Response:
    return client.post("/api/durable/run/story/resume", json={"reason": "x"}, headers=ACTION)


@pytest.mark.parametrize("fault", ["refuse", "blackhole"], ids=["is away", "says nothing"])
def test_while_postgres_is_not_there_everything_says_so_soon_and_then_goes_on(
    behind: FlowerServer, proxy: Proxy, fault: str
) -> None:
    with behind.client(ADA) as client, client.stream("GET", "/durable/stream?run=story") as stream:
        lines = stream.iter_lines()
        assert "event: changed" in lines
        eventually(lambda: client.get("/durable").status_code == 200, what="the list")

        getattr(proxy, fault)()

        assert "event: trouble" in lines
        started = time.monotonic()
        for path in PAGES:
            answer = client.get(path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), path
        for path in JSON:
            answer = client.get(path)
            assert answer.status_code == 503, path
            assert answer.json()["error"]["type"] == "StoreUnavailableError"
        assert client.get("/tasks").status_code == client.get("/metrics").status_code == 200
        assert time.monotonic() - started < SOON
        assert "Traceback" not in behind.output

        proxy.heal()

        eventually(lambda: client.get("/durable").status_code == 200, what="the list to be back")
        assert "event: changed" in lines  # behind what was said of the trouble
        assert resume(client).json()["state"] == "pending"


def test_nothing_goes_on_in_postgres_for_a_page_that_has_given_up(behind: FlowerServer, store: Store) -> None:
    asked = (
        "select pid from pg_stat_activity where datname = current_database()"
        " and application_name = 'celery-durable flower' and state = 'active'"
    )
    with behind.client(ADA) as client, ThreadPoolExecutor(6) as several:
        with open_transaction(store) as blocking:
            blocking.execute("lock table durable.run in access exclusive mode")
            asking = [several.submit(client.get, "/durable/run/story") for _ in range(6)]
            assert {one.result().status_code for one in asking} == {503}
            eventually(lambda: not execute(store, asked), what="the questions to end", timeout=5)
        assert client.get("/durable/run/story").status_code == 200


def test_actions_that_wait_for_postgres_hold_up_no_page_and_are_refused_in_the_end(
    behind: FlowerServer, store: Store
) -> None:
    with behind.client(ADA) as client, ThreadPoolExecutor(6) as several:
        client.get("/durable")
        with open_transaction(store) as blocking:
            blocking.execute("select from durable.run where id = 'story' for update")
            acting = [several.submit(resume, client) for _ in range(6)]
            eventually(lambda: waiting_for_a_lock(store), what="an action to wait")
            started = time.monotonic()
            assert client.get("/durable/run/story").status_code == 200
            assert client.get("/api/durable/runs").status_code == 200
            assert client.get("/tasks").status_code == 200
            assert time.monotonic() - started < SOON
            assert not any(one.done() for one in acting)
        done = [one.result() for one in acting]
    assert sorted(one.status_code for one in done) == [200, 409, 409, 409, 409, 409]
    events = store.inspection.get("story").events  # type: ignore[union-attr]
    assert [event.kind for event in events] == ["resumed"]


def waiting_for_a_lock(store: Store) -> bool:
    waits = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    return bool(execute(store, waits))


def test_an_action_is_refused_when_postgres_is_away(behind: FlowerServer, proxy: Proxy) -> None:
    with behind.client(ADA) as client:
        assert client.get("/durable").status_code == 200
        proxy.refuse()
        answer = resume(client)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "StoreUnavailableError")


def test_in_read_only_mode_no_route_changes_anything_and_everything_can_be_read(
    world: World, store: Store
) -> None:
    result = world.send("plain", "text")
    soon = store.inspection.get(result.id).now.replace(year=2100)  # type: ignore[union-attr]
    token = sign(Token(result.id, "approved", "here", soon), SECRET)
    changes: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/api/durable/run/story/resume", {"reason": "x"}),
        ("/api/durable/run/story/retry", {"reason": "x"}),
        ("/api/durable/run/story/cancel", {"reason": "x"}),
        ("/api/durable/run/story/fork", {"reason": "x"}),
        ("/api/durable/run/story/fork", {"dry_run": True}),
        (f"/api/durable/run/{result.id}/signal", {"name": "approved"}),
        ("/api/durable/bulk", {"action": "resume", "ids": ["story"], "reason": "x"}),
        (f"/api/durable/token/{token}", {}),
    )
    everything = "select r.*, r.xmin::text as version from durable.run r order by key"
    before = execute(store, everything)
    with flower(world, BASIC, "--read_only=true") as server, server.client(ADA) as client:
        for path, body in changes:
            answer = client.post(path, json=body, headers=ACTION)
            assert (answer.status_code, "read-only" in answer.text) == (403, True), path
        for path in (*PAGES, *JSON):
            assert client.get(path).status_code == 200, path
        page = client.get("/durable/run/story").text
        assert "data-action" in page
        assert 'disabled title="Flower is in read-only mode"' in page
    assert execute(store, everything) == before
    assert execute(store, "select key from durable.signal") == []
