"""Everything at once, for a while; then the tables and the ledger have to agree on what happened."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

from harness import invariants
from harness.monkey import Monkey

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.world import World

SECONDS = float(os.environ.get("DURABLE_CHAOS_SECONDS", "30"))
RETRY_DELAY = 0.3
COUNTDOWN = 2.0
RUNS_PER_SECOND = 5


def send_some(world: World, chance: random.Random, runs: int) -> dict[str, float]:
    """Start runs of all kinds; return their countdowns by id."""
    sent = {}
    for _ in range(runs):
        kind = chance.random()
        names = [f"step{number}" for number in range(chance.randint(1, 8))]
        link = world.app.tasks["plain"].s() if chance.random() < 0.2 else None
        countdown = COUNTDOWN if chance.random() < 0.1 else 0.0
        options: dict[str, Any] = {"link": link, "countdown": countdown or None}
        if kind < 0.7:
            result = world.send("flow", names, chance.uniform(0.0, 0.05), **options)
        elif kind < 0.9:
            result = world.send("flaky", chance.randint(1, 3), **options)
        else:
            result = world.send("plain", "no steps", **options)
        sent[result.id] = countdown
    return sent


def test_whatever_happens_every_run_ends_once_and_no_finished_step_is_repeated(new_world: Callable[..., Any]) -> None:
    seed = int(os.environ.get("DURABLE_CHAOS_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    options = {"concurrency": 2}
    with new_world(proxy=True, durable_max_recoveries=100) as world:
        world.pair(**options)
        monkey, witness = Monkey(world, seed, **options), invariants.Witness(world.tables)
        sent: dict[str, float] = {}
        began = time.monotonic()
        deadline = began + SECONDS
        while time.monotonic() < deadline:
            due = int((time.monotonic() - began) * RUNS_PER_SECOND) + 20
            sent |= send_some(world, chance, min(due - len(sent), 50))
            monkey.play()
            witness.look()
        story = f"seed {seed}: {' '.join(monkey.done)}"
        print(story)
        world.proxy.calm()
        world.tables.wait_until_all_final(sent, timeout=60)
        witness.look()

        linked = [row["id"] for row in world.tables.rows("select id from durable.run where parent is not null")]
        world.tables.wait_until_all_final(linked, timeout=30)
        assert not witness.wrong, f"{story}\n{witness.wrong[:5]}"
        states = world.tables.rows("select state, reason, count(*) as n from durable.run group by state, reason")
        assert [row["state"] for row in states] == ["succeeded"], f"{story}\n{states}"
        invariants.check_all(
            world.app,
            world.tables,
            world.ledger,
            [*sent, *linked],
            countdowns={run: countdown for run, countdown in sent.items() if countdown},
            retry_delay=RETRY_DELAY,
        )
