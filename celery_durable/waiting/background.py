"""Keeping promises of results while nobody waits, where that is cheap: in a greenlet."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from kombu.utils.compat import detect_environment

from celery_durable.waiting.wait import Wait

if TYPE_CHECKING:
    from celery_durable.waiting.poller import Poller
    from celery_durable.waiting.promises import Promises

logger = logging.getLogger(__name__)

_ROUND, _LONGEST_PAUSE = 1.0, 0.5


class Background:
    """Under gevent and eventlet, a greenlet that asks as long as there is a callback to call, and then ends.

    Elsewhere there is none: a thread would hold up the end of the interpreter and be missing after a fork, so
    callbacks are called when a thread waits for any result, as with Celery's other backends.

    Arguments:
        poller: asks.
        promises: the results that may have callbacks.
    """

    def __init__(self, poller: Poller, promises: Promises) -> None:
        self._poller = poller
        self._promises = promises
        self._greenlet: Any = None
        self._wait: Wait | None = None

    def look(self) -> None:
        """See to it that somebody asks for the results that have callbacks, or are about to get one."""
        if detect_environment() not in ("gevent", "eventlet"):
            return
        if self._greenlet is None:
            self._greenlet = _spawn(self._run)
        elif self._wait is not None:
            self._wait.began = time.monotonic()
            self._poller.nudge()

    def _run(self) -> None:
        try:
            self._wait = Wait({}, longest=_LONGEST_PAUSE, promises=True)
            while self._promises.with_callbacks():
                self._poller.block(self._wait, time.monotonic() + _ROUND)
        except Exception:
            logger.exception("Nobody asks for results with callbacks until the next one is registered")
        finally:
            self._wait = self._greenlet = None


def _spawn(work: Any) -> Any:
    if detect_environment() == "gevent":
        import gevent

        return gevent.spawn(work)
    import eventlet

    return eventlet.spawn(work)
