"""A worker is killed behind a call, and before its step is stored: the repeated call names the same key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from answering import Server, answering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World


@pytest.fixture
def world(new_world: Callable[..., Any]) -> Iterator[World]:
    with new_world() as made:
        yield made


@pytest.fixture
def server() -> Iterator[Server]:
    with answering() as made:
        yield made


def test_a_call_repeated_after_a_kill_has_the_same_key_and_is_evidence_once(
    world: World, server: Server
) -> None:
    worker = world.worker()
    world.gates.close("called")
    result = world.send("calling", server.url)
    called = world.ledger.wait_for("called", "call", result.id)

    worker.kill_child(called.pid)
    world.ledger.wait_for("called", "call", result.id, times=2)
    world.gates.open("called")

    assert result.get(timeout=20) == 200
    assert server.keys == [f"{result.id}/call"] * 2
    backend: Any = world.app.backend
    events = backend.store.inspection.get(result.id).events
    assert [event.detail["status"] for event in events if event.kind == "call"] == [200]
