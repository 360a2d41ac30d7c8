"""Real workers die at random; a table of the user's has exactly one row per transaction step."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from harness import postgres
from harness.monkey import Monkey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

    from celery_durable.store import Store

SECONDS = float(os.environ.get("DURABLE_LEDGER_SECONDS", "12"))
RUNS_PER_SECOND = 4
TABLE = "create table entry (key text not null)"  # and nothing that would keep a second row out


@pytest.fixture
def elsewhere(postgres_url: str) -> Iterator[str]:
    """Return the URL of a user's database beside the store's."""
    with postgres.fresh_database(postgres_url) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(TABLE)
        yield url


def prepared(world: World, elsewhere: str) -> None:
    """Make the tables that the steps write to."""
    backend: Any = world.app.backend
    store: Store = backend.store
    store.migrate()
    world.tables.rows(TABLE)
    store.transactions("elsewhere").install()


def entries(world: World, elsewhere: str) -> list[str]:
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        there = [key for (key,) in connection.execute("select key from entry").fetchall()]
    return sorted([*there, *(row["key"] for row in world.tables.rows("select key from entry"))])


def test_whatever_dies_there_is_exactly_one_row_per_step(
    new_world: Callable[..., Any], elsewhere: str, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("DURABLE_CHAOS_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    settings = {"durable_max_recoveries": 1000, "durable_databases": {"elsewhere": elsewhere}}
    with new_world(proxy=True, **settings) as world:
        prepared(world, elsewhere)
        world.pair(concurrency=2)
        monkey = Monkey(world, seed, concurrency=2)
        expected: list[str] = []
        ids: list[str] = []
        began = time.monotonic()
        while (passed := time.monotonic() - began) < SECONDS:
            while len(ids) < passed * RUNS_PER_SECOND + 12:
                names = [f"step{number}" for number in range(chance.randint(2, 6))]
                run = world.send("bookkeeping", names, chance.uniform(0, 0.1), "elsewhere")
                ids.append(run.id)
                expected += [f"{run.id}/{name}" for name in names]
            world.proxy.lose_answer("transactions", "keep", times=chance.randint(0, 3))
            monkey.play()
        story = f"seed {seed}, {len(expected)} steps: {' '.join(monkey.done)}"
        record_property("story", story)
        world.proxy.calm()
        world.tables.wait_until_all_final(ids, timeout=90)

        assert entries(world, elsewhere) == sorted(expected), story
        states = world.tables.rows("select state, count(*) as runs from durable.run group by state")
        assert [row["state"] for row in states] == ["succeeded"], story


def test_a_worker_frozen_in_a_transaction_keeps_nobody_from_its_run_and_commits_nothing_afterwards(
    new_world: Callable[..., Any], elsewhere: str
) -> None:
    with new_world(durable_databases={"elsewhere": elsewhere}) as world:
        prepared(world, elsewhere)
        world.pair()
        world.gates.close("mid")
        result = world.send("bookkeeping", ["mid", "last"], 0.0, "elsewhere")
        world.ledger.wait_for("start", "mid", result.id)
        frozen = world.owner(result.id)

        frozen.freeze()
        world.ledger.wait_for("start", "mid", result.id, times=2)
        world.gates.open("mid")
        assert result.get(timeout=20) == ["mid done", "last done"]
        frozen.thaw()
        frozen.wait_for_log("lost its lease")

        assert entries(world, elsewhere) == sorted([f"{result.id}/last", f"{result.id}/mid"])
