"""Random faults on the workers of a world, one after the other; a seed repeats the choices."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from harness.waiting import eventually, take

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.workers import Worker
    from harness.world import World


class Monkey:
    """Does harm to workers, and replaces those that die.

    Arguments:
        world: whose workers.
        seed: of the choices.
        options: of the workers that replace dead ones.
    """

    def __init__(self, world: World, seed: int, **options: Any) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._options = options
        self._started: dict[Worker, bool] = {}
        self.done: list[str] = []

    @property
    def _alive(self) -> list[Worker]:
        return [worker for worker in self._world.workers if worker.alive and " ready." in worker.output]

    def play(self) -> None:
        """Do one thing, and take a short rest."""
        deeds: list[Callable[[Worker], None]] = [
            self.kill_main,
            self.kill_child,
            self.kill_child,
            self.freeze_past_the_lease,
            self.freeze_until_buried,
            self.freeze_until_buried,
            self.freeze_for_a_moment,
            self.duplicate,
            self.duplicate,
            self.cut,
            self.cut,
            self.stop_politely,
        ]
        if alive := self._alive:
            deed = self._chance.choice(deeds)
            deed(self._chance.choice(alive))
            self.done.append(deed.__name__)
        take(self._chance.uniform(0.1, 0.6))

    def kill_main(self, worker: Worker) -> None:
        """SIGKILL a worker; another one starts."""
        worker.kill9()
        self._world.start(**self._options)

    def stop_politely(self, worker: Worker) -> None:
        """SIGTERM a worker; another one starts."""
        worker.signal(signal.SIGTERM)
        self._world.start(**self._options)

    def kill_child(self, worker: Worker) -> None:
        """SIGKILL a pool child."""
        if children := worker.children():
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(children).pid, signal.SIGKILL)

    def freeze_past_the_lease(self, worker: Worker) -> None:
        """Stop a worker until it counts as dead, and a little longer."""
        self._freeze(worker, self._world.app.conf.durable_lease * self._chance.uniform(1.2, 1.8))

    def freeze_until_buried(self, worker: Worker) -> None:
        """Stop a worker until it counts as dead: it is back while others just begin with its runs."""
        worker.freeze()
        deadline = time.monotonic() + 2 * self._world.app.conf.durable_lease
        eventually(lambda: worker.name not in self._world.tables.workers() or time.monotonic() > deadline)
        worker.thaw()

    def freeze_for_a_moment(self, worker: Worker) -> None:
        """Stop a worker, but not for a lease."""
        self._freeze(worker, self._world.app.conf.durable_lease * self._chance.uniform(0.1, 0.6))

    def _freeze(self, worker: Worker, seconds: float) -> None:
        worker.freeze()
        take(seconds)
        worker.thaw()

    def duplicate(self, _: Worker) -> None:
        """Publish copies of some runs' messages."""
        rows = self._world.tables.rows("select id from durable.run order by random() limit 10")
        for row in rows:
            self._world.publish_again(row["id"], self._chance.randint(1, 2))

    def cut(self, _: Worker) -> None:
        """Cut all connections to Postgres, or lose answers of the statements that matter."""
        if self._chance.random() < 0.4:
            self._world.proxy.cut()
        else:
            statement = self._chance.choice(["claim", "checkpoint", "finish", "release"])
            lose = self._chance.choice([self._world.proxy.lose_answer, self._world.proxy.lose_request])
            lose("runs", statement, times=self._chance.randint(1, 3))
