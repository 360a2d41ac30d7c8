"""Changes, told to everybody who watches: one look at the database for the whole process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.watching import Watching

logger = logging.getLogger(__name__)

LIST = ""  # the topic of lists; a run's topic is its id
_MOST_LISTENERS = 500
_UNSEEN = object()


class TooManyListenersError(Exception):
    """Enough browsers are listening."""


class Live:
    """Looks for changes while somebody listens, once for all of them, and tells each one its topic's.

    Arguments:
        watching: where to look.
        lease: seconds after which a silent worker counts as dead.
        interval: seconds between two looks.
    """

    def __init__(self, watching: Watching, lease: float, interval: float) -> None:
        self._watching = watching
        self._lease = timedelta(seconds=lease)
        self._interval = max(interval, 0.1)
        self._listeners: dict[asyncio.Queue[str], str] = {}
        self._seen: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self.looks = 0

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    @contextlib.contextmanager
    def listening(self, topic: str) -> Iterator[asyncio.Queue[str]]:
        """Yield a queue that gets `changed` when the topic has changed, and `trouble` when nobody can tell.

        Raises `TooManyListenersError`.
        """
        if len(self._listeners) >= _MOST_LISTENERS:
            raise TooManyListenersError
        queue: asyncio.Queue[str] = asyncio.Queue(maxsize=8)
        self._listeners[queue] = topic
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield queue
        finally:
            del self._listeners[queue]
            if topic not in self._listeners.values():
                self._seen.pop(topic, None)

    async def _run(self) -> None:
        while self._listeners:
            try:
                await self._look()
            except Exception as error:
                if not isinstance(error, StoreUnavailableError):  # the pages say that
                    logger.exception("Looking for changes failed")
                self._tell("trouble", set(self._listeners.values()))
                self._seen.clear()
            await asyncio.sleep(self._interval)

    async def _look(self) -> None:
        topics = set(self._listeners.values())
        ids = [topic for topic in topics if topic != LIST]
        wanted: list[tuple[str, dict[str, Any]]] = []
        if LIST in topics:
            wanted.append(("pulse", {"lease": self._lease}))
        if ids:
            wanted.append(("pulses", {"ids": ids, "lease": self._lease}))
        answers = await self._watching.several(*wanted)
        self.looks += 1
        found: dict[str, Any] = dict.fromkeys(ids)
        if LIST in topics:
            found[LIST] = tuple(answers[0][0].values())
        if ids:
            found.update({row["id"]: tuple(row.values()) for row in answers[-1]})
        self._tell("changed", {topic for topic in found if self._seen.get(topic, _UNSEEN) != found[topic]})
        self._seen.update(found)

    def _tell(self, word: str, topics: set[str]) -> None:
        for queue, topic in self._listeners.items():
            if topic in topics and not queue.full():  # a slow browser learns of the next change
                queue.put_nowait(word)

    async def ended(self) -> None:
        """Return when nobody looks any more, which is soon after the last listener has gone."""
        if self._task is not None:
            await self._task
