"""Results that a worker has read in part when its broker is lost: they are read to their end first.

A pool child's message that does not fit into the pipe at once is read piece by piece, by a generator that
waits in the event loop. When the connection to the broker breaks, Celery (5.7) resets the loop, and the
generator is gone: the rest of the message is then taken for the beginning of another, the pipe is given up,
and the child is believed to be busy for as long as the worker lives. A run that leaves its worker, a retry
and a failure have such messages: they carry a traceback.
"""

from __future__ import annotations

import logging
import time
from inspect import isgenerator
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_PATIENCE = 2.0
"""Seconds that a child has for the rest of its message; one that is alive needs none."""


def read_to_the_end(hub: Any) -> None:
    """Let an event loop finish what it has begun to read of its pool before it is reset."""
    reset = hub.reset

    def finish_and_reset() -> None:
        for fd, registered in list(hub.readers.items()):
            reading = registered and registered[0]
            if isgenerator(reading) and reading.__name__ == "_recv_message":
                _finish(fd, reading)
        reset()

    hub.reset = finish_and_reset


def _finish(fd: int, reading: Iterator[object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            next(reading)
            if not wait([fd], max(0.0, deadline - time.monotonic())):
                logger.warning(
                    "A pool child did not finish what it had begun to tell when the broker was lost"
                )
                return
    except StopIteration:
        return
    except Exception as error:  # noqa: BLE001  (most likely of the connection that is lost: nothing to acknowledge)
        logger.info("A result came in while the broker was lost: %r", error)
