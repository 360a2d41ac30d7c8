"""What goes wrong: workers die and stand still, Postgres restarts, Redis forgets, messages come twice."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from harness.monkey import Monkey
from harness.waiting import take

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.brokers import PrivateRedis
    from harness.postgres import PrivatePostgres
    from harness.workers import Worker
    from harness.world import World

APP = "soaking.app"
CONCURRENCY = 3


class Faults(Monkey):
    """Does harm to workers, to the database and to the broker.

    Arguments:
        world: whose workers.
        seed: of the choices.
        server: its Postgres.
        broker: its Redis.
    """

    def __init__(self, world: World, seed: int, server: PrivatePostgres, broker: PrivateRedis) -> None:
        super().__init__(world, seed, concurrency=CONCURRENCY, app=APP)
        self._server = server
        self._broker = broker

    @property
    def counts(self) -> dict[str, int]:
        """How often each thing was done."""
        return dict(Counter(self.done))

    def play(self) -> None:
        """Do one thing, and take a short rest."""
        deeds: list[tuple[int, Callable[[Worker], None]]] = [
            (2, self.kill_main),
            (4, self.kill_child),
            (2, self.freeze_past_the_lease),
            (2, self.freeze_until_buried),
            (3, self.freeze_for_a_moment),
            (4, self.duplicate),
            (2, self.stop_politely),
            (2, self.restart_postgres),
            (1, self.lose_messages),
        ]
        self._replace()
        if alive := self._alive:
            weights = [weight for weight, _ in deeds]
            ((_, deed),) = self._chance.choices(deeds, weights)
            deed(self._chance.choice(alive))
            self.done.append(deed.__name__)
        take(self._chance.uniform(0.2, 1.5))

    def _replace(self) -> None:
        """Start what a supervisor would: Celery itself may end when its broker does."""
        for _ in range(2 - sum(worker.alive for worker in self._world.workers)):
            self._world.start(**self._options)
            self.done.append("ended by itself")

    def restart_postgres(self, _: Worker) -> None:
        """Stop the server, or crash it; start it again after a while."""
        self._server.stop(crash=self._chance.random() < 0.5)
        take(self._chance.choice([0.0, 0.5, 4.0]))
        self._server.start()

    def lose_messages(self, _: Worker) -> None:
        """Kill Redis, with all that is in it; start it again after a while."""
        self._broker.kill()
        take(self._chance.choice([0.0, 1.0]))
        self._broker.start()

    def heal(self) -> list[Any]:
        """Let everything stand that is needed; return the workers."""
        for worker in self._world.workers:
            if worker.alive:
                worker.thaw()
        self._replace()
        return self._world.workers
