"""The order in which the tasks of a body hear how their steps ended: at a replay the same as at first.

The body's timers (`asyncio.timeout`, `asyncio.sleep`) stand aside while something arrives: each happens
before it or after all that follows from it, never in between, where no replay would find it again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_HOPS = 100


class Arrival:
    """The outcome of a step on its way to the task that waits for it.

    Attributes:
        number: of the outcome; they arrive in the order of their numbers.
        ready: whether it is there. One that is stored as cancelled never is: its task is cancelled again.
        over: whether nobody waits for it any more.
    """

    __slots__ = ("_heard", "number", "over", "ready")

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = False
        self.over = False
        self._heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: Arrival) -> bool:
        return self.number < other.number

    def arrive(self) -> None:
        """Let its task go on."""
        self.over = True
        if not self._heard.done():
            self._heard.set_result(None)

    async def awaited(self) -> bool:
        """Wait for it; return whether a cancellation came meanwhile, too late, for the outcome is stored."""
        too_late = False
        while not self._heard.done():
            try:
                await asyncio.wait({self._heard})
            except asyncio.CancelledError:
                too_late = True
        return too_late


class Timer:
    """A timer of a body.

    Attributes:
        handle: the loop's.

    Arguments:
        order: in which it has its place.
        callback: what it calls, without arguments.
        context: in which that is called.
    """

    def __init__(self, order: Order, callback: Callable[[], Any], context: Context | None) -> None:
        self.handle: asyncio.TimerHandle
        self._order = order
        self._callback = callback
        self._context = context or copy_context()

    def __call__(self) -> None:
        """Be due."""
        self._order.postpone(self)

    def happen(self) -> None:
        """Call what is to be called, after it was postponed."""
        asyncio.get_running_loop().call_soon(self._unless_cancelled, context=self._context)

    def _unless_cancelled(self) -> None:
        if not self.handle.cancelled():
            self._callback()


class Order:
    """Lets outcomes arrive one at a time, each when all that followed from the one before it has happened."""

    def __init__(self) -> None:
        self._line: list[Arrival] = []
        self._postponed: deque[Timer] = deque()
        self._open = False
        self._pumping = False

    def expect(self, number: int) -> Arrival:
        """Return the place of an outcome in the line."""
        arrival = Arrival(number)
        heapq.heappush(self._line, arrival)
        return arrival

    async def arrival(self, arrival: Arrival) -> bool:
        """Wait until it is the turn of an outcome that is there; return whether it was cancelled too late."""
        arrival.ready = True
        if self._open:
            arrival.arrive()
        self._go_on()
        return await arrival.awaited()

    def give_up(self, arrival: Arrival) -> None:
        """Take an outcome out of the line that nobody waits for any more."""
        arrival.over = True
        self._go_on()

    def open(self) -> None:
        """Let all that are there arrive at once: the body is over, nothing follows from them."""
        self._open = True
        for arrival in sorted(self._line):
            if arrival.ready:
                arrival.arrive()
        while self._postponed:
            self._postponed.popleft().happen()

    @property
    def expects(self) -> bool:
        """Whether an outcome is still to arrive."""
        return self._first() is not None

    def timer(self, callback: Callable[[], Any], context: Context | None) -> Timer:
        """Return what is to be called when a timer of the body is due."""
        return Timer(self, callback, context)

    def postpone(self, timer: Timer) -> None:
        """Have a timer happen when nothing arrives, and nothing follows from the last arrival any more."""
        if self._open:
            timer.happen()
            return
        self._postponed.append(timer)
        self._go_on()

    def behind(self, last: int) -> int:
        """Return the number of the latest outcome that what is called now can know of.

        Arguments:
            last: the latest number there is.
        """
        first = self._first()
        return last if first is None else min(last, first.number - 1)

    def _first(self) -> Arrival | None:
        while self._line and self._line[0].over:
            heapq.heappop(self._line)
        return self._line[0] if self._line else None

    def _next(self) -> Arrival | None:
        first = self._first()
        return first if first is not None and first.ready else None

    def _go_on(self) -> None:
        if not self._pumping and (self._postponed or self._next() is not None):
            self._pumping = True
            self._pump_soon()

    def _pump_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._pump, _HOPS)

    def _pump(self, hops: int) -> None:
        """Let the next one arrive when the loop has nothing else to do, or other runs keep it too busy."""
        loop: Any = asyncio.get_running_loop()
        if hops and getattr(loop, "_ready", hops > _HOPS - 10):  # another kind of loop does not show it
            loop.call_soon(self._pump, hops - 1)
            return
        arrival = self._next()
        if arrival is not None:
            arrival.arrive()
        elif self._postponed:
            self._postponed.popleft().happen()
        else:
            self._pumping = False
            return
        self._pump_soon()
