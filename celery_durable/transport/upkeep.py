"""What living consumers do for the dead: notice them, hand on their messages, remove their queues."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

from celery_durable.store.deaths import DeathWatch

if TYPE_CHECKING:
    from celery_durable.store.consuming import ConsumerSession
    from celery_durable.transport.options import BrokerOptions

logger = logging.getLogger(__name__)

_CALM = 4.0  # seconds between two looks at the other consumers while all of them are there
_TROUBLED = 1.0  # and while somebody's session has ended
_TIDY_EVERY = 3  # looks


class Upkeep:
    """One consumer's view of the others.

    Attributes:
        pause: seconds until the next look.

    Arguments:
        options: the transport's.
    """

    def __init__(self, options: BrokerOptions) -> None:
        gap = timedelta(seconds=max(3 * _CALM, options.lease / 2))
        self._silent = DeathWatch(timedelta(seconds=options.lease), gap)
        self._parted = DeathWatch(timedelta(seconds=options.grace), gap)
        self._looks = 0
        self.pause = _CALM

    def forget(self) -> None:
        """Begin anew: while this process could not look, nobody else may have been able to show itself."""
        self._silent.forget()
        self._parted.forget()

    def run_once(self, session: ConsumerSession, me: int) -> dict[str, int]:
        """Look after the others once; return what was done, by name."""
        now, seen = session.consumers()
        beats = {consumer: beat for consumer, (beat, _) in seen.items()}
        parted = {consumer: beat for consumer, (beat, ended) in seen.items() if ended}
        self.pause = _TROUBLED if parted else _CALM
        dead = {**self._silent.observe(now, beats), **self._parted.observe(now, parted)}
        dead.pop(me, None)
        buried = session.bury(dead) if dead else []
        self._looks += 1
        tidies = self._looks % _TIDY_EVERY == 1 and me == min(seen, default=me)
        counts = {"buried": len(buried), "recovered": 0, "expired": 0, "pruned": 0}
        if buried or tidies:
            recovered = session.recover()
            counts["recovered"] = sum(recovered.values())
            for queue, number in recovered.items():
                logger.warning("%d messages of %s were held by a consumer that is gone", number, queue)
        if tidies:
            counts["expired"], pruned = session.tidy()
            counts["pruned"] = len(pruned)
        return counts
