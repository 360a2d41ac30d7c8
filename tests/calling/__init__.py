"""Calls of steps to a server, with each of the libraries, and what is kept of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests

import celery_durable as durable
from celery_durable.http import AsyncDurableTransport, DurableAdapter, DurableTransport
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from delivering import World

ONCE_MORE = {"max_retries": 1, "default_retry_delay": 0}


def with_httpx(url: str, **options: Any) -> int:
    with httpx.Client(transport=DurableTransport()) as client:
        return client.post(url, **options).status_code


async def in_async_httpx(url: str, **options: Any) -> int:
    async with httpx.AsyncClient(transport=AsyncDurableTransport()) as client:
        return (await client.post(url, **options)).status_code


def with_async_httpx(url: str, **options: Any) -> int:
    return asyncio.run(in_async_httpx(url, **options))


def with_requests(url: str, **options: Any) -> int:
    with requests.Session() as session:
        session.mount("http://", DurableAdapter())
        return session.post(url, timeout=10, **options).status_code


libraries = pytest.mark.parametrize("post", [with_httpx, with_async_httpx, with_requests])


def run(world: World, body: Callable[[], Any], **options: Any) -> str:
    """Run a body as the one step of a task; return the run's id."""
    step = durable.step(name="charge", **options)(body)

    def order() -> Any:
        return step()

    return world.run(world.task(order))


def run_async(world: World, body: Callable[[], Any], **options: Any) -> str:
    """Run an `async def` body as the one step of an `async def` task; return the run's id."""
    step = durable.step(name="charge", **options)(body)

    async def order() -> Any:
        return await step()

    return world.run(world.task(order))


def calls(world: World, run_id: str) -> list[dict[str, Any]]:
    return [event.detail for event in Runs(world.app).get(run_id).events if event.kind == "call"]
