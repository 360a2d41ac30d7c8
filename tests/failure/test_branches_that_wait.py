"""Branches of an `async def` body that wait, each for itself: whoever is faster, wherever the worker dies."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import celery_durable as durable
from celery_durable.operations import Runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

EXAMPLES = int(os.environ.get("DURABLE_TEST_EXAMPLES", "120")) // 24
EFFECTS: list[str] = []  # each once for its idempotency key
PACE = [itertools.cycle([0.0])]


@durable.step
async def act(what: str) -> str:
    await asyncio.sleep(next(PACE[0]))
    entry = f"{what} {durable.idempotency_key()}"
    assert entry not in EFFECTS or durable.current_run().attempt > 1
    if entry not in EFFECTS:
        EFFECTS.append(entry)
    return what


async def tree(deeds: list[Any], leaf: Any) -> list[Any]:
    """Do one thing after the other; those that are branches are done side by side."""
    return [await _done(kind, what, leaf) for kind, what in deeds]


async def _done(kind: str, what: Any, leaf: Any) -> Any:
    if kind == "step":
        return await act(what)
    if kind == "sleep":
        return durable.sleep(hours=what)
    if kind == "call":
        return durable.call(leaf.s(what))
    if kind == "signal":
        return durable.wait_for_signal(what)
    if kind == "gather" or not hasattr(asyncio, "TaskGroup"):
        return await asyncio.gather(*(tree(branch, leaf) for branch in what))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tree(branch, leaf)) for branch in what]
    return [task.result() for task in tasks]


leaves = st.one_of(
    st.tuples(st.just("step"), st.sampled_from("ab")),
    st.tuples(st.just("sleep"), st.sampled_from([1, 2])),
    st.tuples(st.just("call"), st.sampled_from("ab")),
    st.tuples(st.just("signal"), st.sampled_from("xy")),
)
grown = st.recursive(
    leaves,
    lambda deeds: st.tuples(
        st.sampled_from(["gather", "group"]),
        st.lists(st.lists(deeds, min_size=1, max_size=3), min_size=2, max_size=3),
    ),
    max_leaves=6,
)
trees = st.lists(grown, min_size=1, max_size=2)
paces = st.lists(st.sampled_from([0.0, 0.002, 0.005, 0.01]), min_size=1, max_size=5)

STEP_AND_CALL = [("step", "a"), ("call", "a"), ("step", "b")]


@pytest.fixture
def survives(durable_app: Celery, crash_everywhere: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Return what executes a tree, with a death on either side of each of its writes."""

    @durable_app.task(name="branches.leaf", shared=False)
    def leaf(what: str) -> str:
        return f"child {what}"

    @durable_app.task(name="branches.tree", shared=False, max_retries=0)
    async def grow(deeds: list[Any]) -> list[Any]:
        return await tree(deeds, leaf)

    def answer(run_id: str) -> None:
        name = Runs(durable_app).get(run_id).awaits
        assert name is not None
        durable.send_signal(run_id, name, f"signal {name}", app=durable_app)

    def check(deeds: list[Any], pace: list[float]) -> list[str]:
        PACE[0] = itertools.cycle(pace)
        return crash_everywhere(
            grow.s(deeds), effects=lambda: sorted(EFFECTS), reset=EFFECTS.clear, when_waiting=answer
        )

    return check


@pytest.mark.timeout(600)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(deeds=trees, pace=paces)
@example(deeds=[("gather", [STEP_AND_CALL, STEP_AND_CALL, STEP_AND_CALL])], pace=[0.01, 0.0, 0.005])
@example(deeds=[("group", [[("sleep", 2), ("step", "a")], [("signal", "x"), ("sleep", 1)]])], pace=[0.0])
def test_every_branch_comes_to_its_end_and_does_everything_once(
    survives: Callable[..., list[str]], deeds: list[Any], pace: list[float]
) -> None:
    survives(deeds, pace)
