"""Server-sent events: that something has changed, never what; the browser then asks for it."""

from __future__ import annotations

import asyncio

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, authenticated

from celery_durable.flower.handlers.base import Answer
from celery_durable.flower.live import LIST, TooManyListenersError

_HEARTBEAT = 15.0  # seconds; proxies close what is silent for a minute


class Stream(Answer):
    """A stream of `changed` and `trouble` for a list or one run."""

    @authenticated
    async def get(self) -> None:
        """Stream until the browser goes away."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")  # nginx would keep events until it has a page of them
        self._closed = asyncio.Event()
        try:
            with self.site.live.listening(self.argument("run") or LIST) as queue:
                self.write(": hello\nretry: 3000\n\n")
                await self.flush()
                await self._pass_on(queue)
        except TooManyListenersError as error:
            raise HTTPError(
                503, "Too many browsers are listening; the page looks for changes by itself"
            ) from error
        except StreamClosedError:
            pass

    async def _pass_on(self, queue: asyncio.Queue[str]) -> None:
        number = 0
        while not self._closed.is_set():
            word = await self._next(queue)
            number += 1
            self.write(f"id: {number}\nevent: {word}\ndata: {number}\n\n" if word else ": still here\n\n")
            await self.flush()

    async def _next(self, queue: asyncio.Queue[str]) -> str | None:
        """Return the next word, or None when it is time for a heartbeat or the browser is gone."""
        waits = [asyncio.ensure_future(queue.get()), asyncio.ensure_future(self._closed.wait())]
        done, left = await asyncio.wait(waits, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
        for wait in left:
            wait.cancel()
        return str(waits[0].result()) if waits[0] in done else None

    def on_connection_close(self) -> None:
        """Stop listening."""
        if hasattr(self, "_closed"):
            self._closed.set()
        super().on_connection_close()
