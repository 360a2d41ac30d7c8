"""The Durable tab behind an OAuth2 login: strangers get nothing of it, whoever has logged in everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from harness.authority import AUTHORIZE, TOKEN, WHO, Authority, authority
from harness.flower import OAUTH, FlowerServer, flower, flower_world
from inspecting import Worker, execute

from celery_durable.flower.routes import routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from harness.world import World

SECRET = "s3cret"
READ = {
    "durable": "/durable",
    "durable_overview": "/durable/overview",
    "durable_stream": "/durable/stream?run=story",
    "durable_run": "/durable/run/story",
    "durable_payload": "/durable/run/story/payload?part=output&step=fetch",
    "durable_raw": "/durable/run/story/raw?part=output&step=fetch",
    "durable_state": "/durable/run/story/state?step=fetch",
    "durable_api_runs": "/api/durable/runs",
    "durable_api_counts": "/api/durable/counts",
    "durable_api_overview": "/api/durable/overview",
    "durable_api_run": "/api/durable/run/story",
}
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "durable_api_fork": ("/api/durable/run/story/fork", {"dry_run": True}),
    "durable_api_action": ("/api/durable/run/story/resume", {"reason": "a test"}),
    "durable_api_signal": ("/api/durable/run/story/signal", {"name": "approved"}),
    "durable_api_bulk": ("/api/durable/bulk", {"action": "cancel", "ids": ["story"], "reason": "a test"}),
}
OPEN_TO_ALL = {"durable_static", "durable_api_token"}  # style and script; what a token stands for


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with flower_world(postgres_url) as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Authority]:
    with authority() as made:
        yield made


@pytest.fixture(
    scope="module",
    params=[
        ("flowering.oauth.Login", ()),
        ("flowering.oauth.Login", ("--url_prefix=ops/flower",)),
        ("flower.views.auth.OktaLoginHandler", ()),
    ],
    ids=["own provider", "own provider under a prefix", "Flower's Okta"],
)
def guarded(request: pytest.FixtureRequest, world: World, server: Authority) -> Iterator[FlowerServer]:
    provider, options = request.param
    variables = {"FLOWERING_OAUTH_SERVER": server.url, "FLOWER_OAUTH2_OKTA_BASE_URL": server.url}
    provided = f"--auth_provider={provider}"
    with flower(world, *OAUTH, provided, *options, variables=variables) as started:
        yield started


@pytest.fixture(autouse=True)
def story(world: World) -> Iterator[None]:
    """A failed run with something in it that is nobody's business."""
    backend: Any = world.app.backend
    worker = Worker(backend.store)
    claim = worker.start("story", task="media.process", body=f'[["{SECRET}"],{{}},{{}}]'.encode())
    worker.step(claim, "fetch", 1, arguments=f"('{SECRET}',)", output=f'"{SECRET}"'.encode())
    worker.fail(claim, error=f"ValueError: {SECRET}")
    yield
    execute(backend.store, "delete from durable.run")


def acts(client: httpx.Client, name: str, **headers: str) -> httpx.Response:
    path, body = CHANGED[name]
    return client.post(path, json=body, headers={"X-Durable-Action": "1", **headers})


def test_every_route_is_tried() -> None:
    assert {route.name for route in routes()} == set(READ) | set(CHANGED) | OPEN_TO_ALL


def test_a_stranger_gets_nothing(guarded: FlowerServer) -> None:
    with guarded.client() as stranger:
        for path in READ.values():
            with stranger.stream("GET", path) as answer:  # an open stream would never end
                assert answer.status_code == 302, path
                assert "/login?next=" in answer.headers["Location"], path
                assert answer.read() == b""
        for name in CHANGED:
            assert acts(stranger, name).status_code == 403, name
        # not with a token against forgery either, which Flower gives to everybody
        stranger.cookies.set("_xsrf", "made-up")
        for name in CHANGED:
            assert acts(stranger, name, **{"X-XSRFToken": "made-up"}).status_code == 403, name


def test_whoever_logs_in_gets_everything_until_they_log_out(guarded: FlowerServer, server: Authority) -> None:
    with guarded.client(follow_redirects=True) as client:
        del server.asked[:]
        client.get("/login")  # Flower forgets where one wanted to go, and under a prefix lands beside itself
        assert server.asked == [AUTHORIZE, TOKEN, WHO]
        for name, path in READ.items():
            with client.stream("GET", path) as answer:
                assert answer.status_code == 200, path
                if name == "durable_stream":
                    assert "event: changed" in answer.iter_lines()
                elif name in ("durable_payload", "durable_raw", "durable_state"):
                    assert SECRET in answer.read().decode(), path
        # A page of ours gives the token against forgery; without it nothing is changed.
        assert client.get("/durable").status_code == 200
        token = {"X-XSRFToken": client.cookies["_xsrf"]}
        for name in CHANGED:
            assert acts(client, name).status_code == 403, name
            foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
            assert acts(client, name, **token, **foreign).status_code == 403, name
        answers = {name: acts(client, name, **token) for name in CHANGED}
        assert {name: answer.text for name, answer in answers.items() if answer.status_code != 200} == {}
        told = client.get("/api/durable/run/story").json()
        done = {one.get("kind", "signal"): one["actor"] for one in (*told["events"], *told["signals"])}
        assert {done[kind] for kind in ("resumed", "cancelled", "signal")} == {"ada@example.com"}
        client.get("/logout")
        answer = client.get("/durable", follow_redirects=False)
        assert (answer.status_code, "/login?next=" in answer.headers["Location"]) == (302, True)


def test_another_account_and_a_forged_return_are_not_let_in(guarded: FlowerServer, server: Authority) -> None:
    server.user = "eve@example.com"
    try:
        with guarded.client(follow_redirects=True) as eve:
            assert eve.get("/durable").status_code == 403
            assert eve.get("/durable", follow_redirects=False).status_code == 302
    finally:
        server.user = "ada@example.com"
    with guarded.client() as victim:  # somebody else's code, brought by a link
        answer = victim.get("/login?code=another&state=another")
        assert answer.status_code >= 400
        assert victim.get("/durable").status_code == 302
