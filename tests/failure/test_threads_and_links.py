"""Runs that execute in one process, in threads of a pool: each starts what follows itself, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import chain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

_LINKS = "select id from durable.run where task = 'on_success' and parent = %s"


@pytest.fixture(scope="module", params=["threads", "gevent"])
def pool(request: pytest.FixtureRequest, new_world: Callable[..., Any]) -> Iterator[World]:
    """One worker that executes four runs at once."""
    if request.param == "gevent":
        pytest.importorskip("gevent")
    with new_world(durable_lease=20.0, durable_check_interval=60.0) as world:
        # A worker without an event loop looks only every two seconds whether it may take more messages.
        world.worker(pool=request.param, concurrency=4, options=("--prefetch-multiplier=16",))
        yield world


@pytest.mark.parametrize("others", [1, 2])
def test_links_and_chains_belong_to_the_run_that_succeeded_whatever_else_executes(
    pool: World, others: int
) -> None:
    gate = f"busy{others}"
    pool.gates.close(gate)
    busy = [pool.send("flow", [gate, "after"]) for _ in range(others)]
    for run in busy:
        pool.ledger.wait_for("start", gate, run.id)
    plain, link = pool.app.tasks["plain"], pool.app.tasks["on_success"]

    texts = [f"{others}-{number}" for number in range(5)]
    chains = [chain(plain.s(text).set(link=link.s()), plain.s(), plain.s()).apply_async() for text in texts]

    assert [result.get(timeout=20) for result in chains] == texts
    for last in chains:
        second = last.parent
        first = second.parent
        links = pool.tables.rows(
            "select id from durable.run where task = 'on_success' and parent = %s", first.id
        )
        assert [pool.app.AsyncResult(row["id"]).get(timeout=10) for row in links] == [first.get(timeout=10)]
        assert pool.tables.run(second.id)["parent"] == first.id
        assert pool.tables.run(last.id)["parent"] == second.id
        for result in (first, second, last):
            assert pool.tables.outcomes(result.id) == ["succeeded"]
            assert pool.tables.steps(result.id) == {}
    pool.gates.open(gate)
    for run in busy:
        assert run.get(timeout=10) == [f"{gate} done", "after done"]
        assert list(pool.tables.steps(run.id)) == [gate, "after"]
