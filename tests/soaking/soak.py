"""One soak: send, harm, look on; then heal, wait for the backlog to drain, and check."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.waiting import eventually, take
from harness.world import World

from soaking import tasks
from soaking.checks import Witness, violations
from soaking.faults import APP, CONCURRENCY, Faults
from soaking.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis
    from harness.postgres import PrivatePostgres
    from harness.setup import Setup

LEASE = 2.0
SETTINGS: dict[str, Any] = {
    "durable_lease": LEASE,
    "durable_check_interval": 1.0,
    "durable_lost_after": 20.0,
    "durable_max_recoveries": 1000,
}
_BACKLOG = 60  # unfinished runs of ours, above which nothing is sent
_UNFINISHED = "select count(*) from durable.run where finished_at is null and task <> 'trip'"
_LEFT = (
    "select id, task, state, reason, due, published_at from durable.run where finished_at is null limit 20"
)


@dataclass
class Story:
    """What a soak has come to."""

    seed: int
    seconds: float = 0.0
    drained_in: float = 0.0
    sent: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All of it, for people."""
        wrong = sum(map(len, self.violations.values()))
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s, {self.sent:,} runs, drained in {self.drained_in:.1f} s",
            "faults: " + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
            "rows: " + ", ".join(f"{name} {count}" for name, count in self.figures.items()),
            f"{wrong} violations",
        ]
        for name, found in self.violations.items():
            lines += [f"  {name}: {one}" for one in found[:10]]
        return "\n".join(lines)


class Soak:
    """Everything at once.

    Arguments:
        setup: the app's.
        server: a Postgres of the soak's own.
        broker: a Redis of its own.
        seed: of all choices.
        say: prints progress.
    """

    def __init__(
        self,
        setup: Setup,
        server: PrivatePostgres,
        broker: PrivateRedis,
        *,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.world = World(setup, server.url)
        self.world.app = tasks.register(setup)
        self._seed = seed
        self._say = say
        backend: Any = self.world.app.backend
        backend.store.migrate()
        self.world.tables.rows("create table entry (key text not null)")
        self.load = Load(self.world, random.Random(seed))
        self.faults = Faults(self.world, seed, server, broker)

    def run(self, seconds: float, patience: float = 180.0) -> Story:
        """Soak for a while; return what has come of it."""
        story = Story(self._seed)
        for _ in range(2):
            self.world.start(concurrency=CONCURRENCY, app=APP)
        witness = Witness(self.world)
        began = time.monotonic()
        told = began
        while time.monotonic() < began + seconds:
            self.load.send(max(0, min(20, _BACKLOG - self.world.tables.one(_UNFINISHED))))
            self.load.run_errands()
            self.faults.play()
            witness.look()
            if time.monotonic() > told + 60:
                told = time.monotonic()
                self._say(
                    f"{told - began:.0f} s: {len(self.load.sent):,} runs, {len(witness.wrong)} violations"
                )
        story.seconds = time.monotonic() - began
        self.faults.heal()
        story.drained_in = self._drain(story, patience)
        witness.look()
        story.sent, story.faults, story.figures = len(self.load.sent), self.faults.counts, self._figures()
        story.violations |= violations(self.world, self.load.sent, witness)
        return story

    def _drain(self, story: Story, patience: float) -> float:
        began = time.monotonic()

        def over() -> bool:
            self.load.run_errands()
            take(0.2)
            return not self.load.errands and not self.world.tables.rows(_LEFT)

        try:
            eventually(over, timeout=patience)
        except AssertionError:
            left = [str(row) for row in self.world.tables.rows(_LEFT)]
            story.violations["backlog"] = left or [f"{len(self.load.errands)} errands"]
        return time.monotonic() - began

    def _figures(self) -> dict[str, Any]:
        return self.world.tables.rows(
            "select (select count(*) from durable.run) as runs,"
            " (select count(*) from durable.attempt) as attempts,"
            " (select count(*) from durable.checkpoint) as checkpoints,"
            " (select sum(recoveries) from durable.run) as recoveries,"
            " (select count(*) from durable.attempt where outcome = 'lost') as lost,"
            " (select count(*) from entry) as entries,"
            " (select sum(generation) from durable.run) as resumes"
        )[0]

    def keep(self, folder: str, story: Story) -> None:
        """Write down what is needed to find out what went wrong."""
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        with open(f"{folder}/story.json", "w") as file:  # noqa: PTH123
            json.dump(story.__dict__, file, indent=1, default=str)
        for worker in self.world.workers:
            with open(f"{folder}/{worker.name}.log", "w") as file:  # noqa: PTH123
                file.write(worker.output)

    def leave(self) -> None:
        """Leave nothing behind."""
        self.world.leave()
