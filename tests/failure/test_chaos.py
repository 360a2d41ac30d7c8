"""Everything at once, for a while; then the tables and the ledger have to agree on what happened."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import invariants
from harness.monkey import Monkey

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.world import World

SECONDS = float(os.environ.get("DURABLE_CHAOS_SECONDS", "30"))
RETRY_DELAY = 0.3
COUNTDOWN = 2.0
RUNS_PER_SECOND = 5


@dataclass(frozen=True)
class Sent:
    """What was asked for."""

    id: str
    expected: Any
    countdown: float
    linked: bool


def send_some(world: World, chance: random.Random, runs: int) -> list[Sent]:
    """Start runs of all kinds."""
    sent = []
    for _ in range(runs):
        kind = chance.random()
        names = [f"step{number}" for number in range(chance.randint(1, 8))]
        link = world.app.tasks["plain"].s() if chance.random() < 0.2 else None
        countdown = COUNTDOWN if chance.random() < 0.1 else 0.0
        options: dict[str, Any] = {"link": link, "countdown": countdown or None}
        if kind < 0.7:
            result = world.send("flow", names, chance.uniform(0.0, 0.05), **options)
            expected: Any = [f"{name} done" for name in names]
        elif kind < 0.75:
            result = world.send("napping", chance.choice([0.2, 2.5]), **options)
            expected = ["first done", "second done"]
        elif kind < 0.8:
            result = world.send("approval", **options)
            durable.send_signal(result.id, "approved", result.id, idempotency_key="once", app=world.app)
            expected = ["first done", result.id, "second done"]
        elif kind < 0.85:
            children = chance.randint(1, 4)
            result = world.send("parent", children, **options)
            expected = ["before done", [f"child {number}" for number in range(children)], "after done"]
        elif kind < 0.93:
            failures = chance.randint(1, 3)
            result = world.send("flaky", failures, **options)
            expected = ["first done", "second done", failures]
        else:
            result = world.send("plain", "no steps", **options)
            expected = "no steps"
        sent.append(Sent(result.id, expected, countdown, link is not None))
    return sent


def test_whatever_happens_every_run_ends_once_and_no_finished_step_is_repeated(
    new_world: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("DURABLE_CHAOS_SEED", random.randrange(10**6)))
    chance = random.Random(seed)
    options = {"concurrency": 2}
    with new_world(proxy=True, durable_max_recoveries=100) as world:
        world.pair(**options)
        monkey, witness = Monkey(world, seed, **options), invariants.Witness(world.tables)
        sent: list[Sent] = []
        began = time.monotonic()
        deadline = began + SECONDS
        while time.monotonic() < deadline:
            due = int((time.monotonic() - began) * RUNS_PER_SECOND) + 20
            sent += send_some(world, chance, min(due - len(sent), 50))
            monkey.play()
            witness.look()
        story = f"seed {seed}: {' '.join(monkey.done)}"
        record_property("story", story)
        world.proxy.calm()
        world.tables.wait_until_all_final([one.id for one in sent], timeout=60)
        witness.look()

        children = [
            row["id"] for row in world.tables.rows("select id from durable.run where wait is not null")
        ]
        linked = [
            row["id"]
            for row in world.tables.rows(
                "select id from durable.run where parent is not null and wait is null"
            )
        ]
        world.tables.wait_until_all_final(linked, timeout=30)
        assert len(linked) == sum(one.linked for one in sent), story
        wrong = [one for one in sent if world.app.AsyncResult(one.id).result != one.expected]
        assert not wrong, f"{story}\n{wrong[:5]}"
        assert not witness.wrong, f"{story}\n{witness.wrong[:5]}"
        states = world.tables.rows(
            "select state, reason, count(*) as n from durable.run group by state, reason"
        )
        assert [row["state"] for row in states] == ["succeeded"], f"{story}\n{states}"
        invariants.check_all(
            world.app,
            world.tables,
            world.ledger,
            [*(one.id for one in sent), *linked, *children],
            countdowns={one.id: one.countdown for one in sent if one.countdown},
            retry_delay=RETRY_DELAY,
        )
