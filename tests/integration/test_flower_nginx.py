"""The Durable tab behind nginx, with the configuration that Flower's documentation shows and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from harness.flower import ADA, BASIC, flower, flower_world
from harness.nginx import nginx
from inspecting import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.world import World

LARGE = 3_000_000
AT_ONCE = 5.0  # seconds; far less than the heartbeats that would push an event out of a buffer


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with flower_world(postgres_url) as made:
        yield made


@pytest.fixture
def worker(world: World) -> Worker:
    backend: Any = world.app.backend
    return Worker(backend.store)


@pytest.fixture(scope="module", params=["", "flower"], ids=["at the root", "under a prefix"])
def proxied(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    options = [f"--url_prefix={request.param}"] if request.param else []
    with (
        flower(world, BASIC, "--durable_poll=0.1", *options) as server,
        nginx(server.port, prefix=request.param) as url,
    ):
        yield url


@pytest.fixture
def client(proxied: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxied, auth=ADA, timeout=30) as made:
        yield made


def test_pages_links_downloads_and_actions_go_through(client: httpx.Client, worker: Worker) -> None:
    claim = worker.start()
    worker.step(claim, "fetch", 1, output=b'"' + b"x" * LARGE + b'"')
    worker.fail(claim)
    path = str(client.base_url.path).rstrip("/")
    listed = client.get("/durable")
    assert f'href="{path}/durable/run/{claim.id}"' in listed.text
    assert f'href="{path}/durable" aria-current="page"' in listed.text
    style = listed.text.partition(f'<link rel="stylesheet" href="{path}/durable/static')[2].partition('"')[0]
    assert client.get(f"/durable/static{style}").headers["Content-Type"].startswith("text/css")
    assert client.get(f"/durable/run/{claim.id}").status_code == 200
    raw = client.get(f"/durable/run/{claim.id}/raw?part=output&step=fetch")
    assert len(raw.content) == LARGE + 2

    origin = {"Origin": f"http://{client.base_url.host}"}  # what a browser sends, and nginx leaves as it is
    act = {"json": {"reason": "a test"}, "headers": {"X-Durable-Action": "1", **origin}}
    answer = client.post(f"/api/durable/run/{claim.id}/resume", **act)
    assert (answer.status_code, answer.json()["state"]) == (200, "pending")
    events = client.get(f"/api/durable/run/{claim.id}").json()["events"]
    assert [(event["kind"], event["actor"]) for event in events] == [("resumed", "ada")]


@pytest.mark.parametrize("query", ["?run={id}", ""], ids=["a run's", "the list's"])
def test_server_sent_events_arrive_at_once(client: httpx.Client, worker: Worker, query: str) -> None:
    claim = worker.start()
    path = f"/durable/stream{query.format(id=claim.id)}"
    with client.stream("GET", path, timeout=AT_ONCE) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: changed"
        worker.succeed(claim)
        assert next(line for line in lines if line.startswith("event")) == "event: changed"


def test_what_has_passed_nginx_is_no_more_trusted_than_before(
    proxied: str, client: httpx.Client, worker: Worker
) -> None:
    run_id = worker.fail(worker.start())
    act = {"json": {"reason": "a test"}}
    with httpx.Client(base_url=proxied, timeout=30) as stranger:
        for path in ("/durable", f"/durable/run/{run_id}", "/api/durable/runs", "/durable/stream"):
            assert stranger.get(path, timeout=AT_ONCE).status_code == 401, path
        headers = {"X-Durable-Action": "1"}
        assert stranger.post(f"/api/durable/run/{run_id}/resume", headers=headers, **act).status_code == 401
    for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        headers = {"X-Durable-Action": "1", **foreign}
        assert client.post(f"/api/durable/run/{run_id}/resume", headers=headers, **act).status_code == 403
