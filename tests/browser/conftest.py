"""A real browser, and a real Flower over an app with a worker."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from harness.brokers import missing
from harness.flower import ADA, BASIC, flower, flower_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.flower import FlowerServer
    from harness.world import World
    from playwright.sync_api import Browser, Page

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
PATIENCE = 20_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's chromium, driven by Playwright, whose event loop is this thread's meanwhile."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing("there is no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def world(postgres_url: str) -> Iterator[World]:
    """Return an app with a database of its own."""
    with flower_world(postgres_url) as made:
        yield made


@pytest.fixture(autouse=True)
def no_worker_is_left(world: World) -> Iterator[None]:
    """End the workers of a test: one that leads would bury those that the next test only pretends."""
    yield
    while world.workers:
        world.workers.pop().clean_up()


@pytest.fixture(scope="session")
def basic(world: World) -> Iterator[FlowerServer]:
    """Return a Flower that asks for a password."""
    with flower(world, BASIC, "--durable_poll=0.2") as server:
        yield server


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return how to open a page; one that logs an error or asks another host for anything fails its test."""
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(server: FlowerServer, path: str = "", *, auth: bool = True, **options: Any) -> Page:
        if auth:
            options["http_credentials"] = {"username": ADA[0], "password": ADA[1]}
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: _same_host(request.url, problems))
        page.problems = problems  # type: ignore[attr-defined]
        page.goto(server.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _same_host(url: str, problems: list[str]) -> None:
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        problems.append(f"asked another host: {url}")
