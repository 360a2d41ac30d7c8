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


def test_links_and_chains_belong_to_the_run_that_succeeded_whatever_else_executes(pool: World) -> None:
    pool.gates.close("tail")
    busy = [pool.send("tail", "return") for _ in range(2)]  # in their bodies, and in no step
    for run in busy:
        pool.ledger.wait_for("end", "head", run.id)
    plain, link = pool.app.tasks["plain"], pool.app.tasks["on_success"]

    texts = [str(number) for number in range(5)]
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
    pool.gates.open("tail")
    for run in busy:
        assert run.get(timeout=10) == pool.workers[0].pid
        assert list(pool.tables.steps(run.id)) == ["head"]
