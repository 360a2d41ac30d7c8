"""A consuming connection as its consumers see it: subscriptions, what arrived, what is done with."""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable.store.consuming import Claimed, Delivery, Return
from celery_durable.transport.bell import Bell
from celery_durable.transport.fetching import Fetching

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from celery_durable.transport.broker import Broker

_AT_THE_END = 5.0  # seconds that closing waits for the last acknowledgements


@dataclass(eq=False)
class Subscription:
    """One consumer of one queue.

    Attributes:
        queue: its name.
        channel: what a prefetch limit belongs to.
        room: how many more messages the channel takes, None for no limit.
        receive: takes a message, in the thread that drains events.
        no_ack: whether a delivery is its own acknowledgement.
        takes_the_rest: whether it is given what has arrived when it is cancelled.
        hungry: whether the queue may have something to claim.
    """

    queue: str
    channel: Hashable
    room: Callable[[], int | None]
    receive: Callable[[Delivery], object]
    no_ack: bool = False
    takes_the_rest: bool = True
    hungry: bool = True


@dataclass(eq=False)
class Errand:
    """A single message asked for out of turn.

    Attributes:
        queue: where from.
        finished: set when there is an answer.
        delivery: the message, None if there was none.
        error: why there is no answer.
    """

    queue: str
    finished: threading.Event
    delivery: Delivery | None = None
    error: BaseException | None = None


class Fetcher:
    """Hands messages from a fetching thread to the threads that consume them, and their outcomes back.

    Arguments:
        broker: the database.
        on_reborn: called in the fetching thread after this consumer was declared dead and began anew.
    """

    def __init__(self, broker: Broker, on_reborn: Callable[[], None]) -> None:
        self.broker = broker
        self.on_reborn = on_reborn
        self.lock = threading.Lock()
        self.bell = Bell()
        self.arrivals = Bell()
        self.subscriptions: list[Subscription] = []
        self.done: deque[Claimed] = deque()
        self.back: deque[Return] = deque()
        self.errands: deque[Errand] = deque()
        self.left: set[str] = set()
        self.stopping = False
        self._arrived = threading.Condition(self.lock)
        self._inbox: deque[tuple[Subscription, Delivery]] = deque()
        self._buffered: dict[Hashable, int] = {}
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    # -- from the consumer's threads ----------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Begin to consume."""
        with self.lock:
            self.subscriptions.append(subscription)
            self._ensure_running()
        self.bell.ring()

    def unsubscribe(self, subscription: Subscription) -> list[Delivery]:
        """Stop to consume; return what has arrived and was not handed over."""
        if self._pid != os.getpid():
            return []  # a child's copy: the consumers are its parent's, and so is whoever held the lock
        with self.lock:
            if subscription in self.subscriptions:
                self.subscriptions.remove(subscription)
            self.left.add(subscription.queue)
            mine = [delivery for owner, delivery in self._inbox if owner is subscription]
            self._inbox = deque(one for one in self._inbox if one[0] is not subscription)
            self._buffered[subscription.channel] = self.buffered(subscription.channel) - len(mine)
        self.bell.ring()
        return mine

    def settle(self, claim: Claimed) -> None:
        """Acknowledge, soon; from any thread."""
        self.done.append(claim)
        self.bell.ring()

    def give_back(self, claim: Claimed, *, counted: bool) -> None:
        """Hand a message to others, soon; from any thread.

        Arguments:
            claim: its claim.
            counted: whether it counts among the returns after which a message is poison.
        """
        self.back.append(Return(claim, counted))
        self.bell.ring()

    def hand_over(self) -> bool:
        """Give a message to its consumer; return whether there was one; raise what ended the thread."""
        with self.lock:
            if not self._inbox:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return False
            subscription, delivery = self._inbox.popleft()
        if subscription.no_ack:
            self.settle(delivery.claim)
        try:
            subscription.receive(delivery)
        finally:
            # It counts until its consumer has taken it: only then does a worker know that it has one more.
            with self.lock:
                self._buffered[subscription.channel] = max(0, self.buffered(subscription.channel) - 1)
        return True

    def ring_for_the_rest(self) -> None:
        """Ring for what has arrived and was not handed over yet."""
        with self.lock:
            waits = bool(self._inbox or self._error)
        if waits:
            self.arrivals.ring()

    def wait(self, timeout: float | None) -> bool:
        """Wait for a message, at most `timeout` seconds; return whether there is one, or an error."""
        with self._arrived:
            return self._arrived.wait_for(lambda: bool(self._inbox or self._error), timeout)

    def claim_one(self, queue: str) -> Delivery | None:
        """Claim the first message of a queue at once, whatever the prefetch limits say."""
        errand = Errand(queue, threading.Event())
        with self.lock:
            self.errands.append(errand)
            self._ensure_running()
        self.bell.ring()
        errand.finished.wait()
        if errand.error is not None:
            raise errand.error
        return errand.delivery

    def stop(self) -> None:
        """Acknowledge what is to be acknowledged, hand back everything else, and end."""
        if self._pid != os.getpid():
            return  # a child's copy: the thread, the connection and the claims are its parent's
        with self.lock:
            thread, self.stopping = self._thread, True
            self._inbox.clear()
            self._buffered.clear()
        self.bell.ring()
        if thread is not None:
            thread.join(_AT_THE_END)
        if thread is None or not thread.is_alive():
            self.bell.close()
            self.arrivals.close()

    def _ensure_running(self) -> None:
        if self._thread is None and not self.stopping:
            run = Fetching(self).run
            self._thread = threading.Thread(target=run, name="celery-durable-broker", daemon=True)
            self._thread.start()

    # -- from the fetching thread -------------------------------------------------------------------------

    def buffered(self, channel: Hashable) -> int:
        """Return how many messages of a channel wait to be delivered."""
        return self._buffered.get(channel, 0)

    def deliver(self, found: list[tuple[Subscription, Delivery]]) -> None:
        """Put messages where `hand_over` finds them; those of a subscription that has ended go back."""
        with self._arrived:
            for subscription, delivery in found:
                if self.stopping or subscription not in self.subscriptions:
                    self.back.append(Return(delivery.claim, counted=False))
                    continue
                self._buffered[subscription.channel] = self.buffered(subscription.channel) + 1
                self._inbox.append((subscription, delivery))
            self._arrived.notify_all()
        self.arrivals.ring()

    def drop(self) -> None:
        """Forget what was not delivered yet: the claims are somebody else's."""
        with self.lock:
            self._inbox.clear()
            self._buffered.clear()

    def ended(self, error: BaseException | None) -> bool:
        """Let the thread end, unless there is something to do; an error ends it in any case."""
        with self._arrived:
            if error is None and not self.stopping and (self.subscriptions or self.errands):
                return False
            self._thread, self._error = None, error
            self._arrived.notify_all()
        if error is not None:
            self.arrivals.ring()
        return True
