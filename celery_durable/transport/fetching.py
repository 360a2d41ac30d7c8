"""The thread of a consuming connection: it claims, acknowledges, renews the lease, and outlives an outage.

The consumer's own thread never waits for Postgres, and a task that keeps it busy (as in the solo pool) does
not let the lease run out. While Postgres is away this thread tries again: consumers and claims survive.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from celery_durable.store.consuming import BACK, IN_QUEUE, Order
from celery_durable.store.hints import REFUSED, with_hint
from celery_durable.store.patience import PASSING, first_line
from celery_durable.transport.heads import Heads
from celery_durable.transport.looks import Looks
from celery_durable.transport.upkeep import Upkeep

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from celery_durable.store.consuming import Claimed, ConsumerSession, Delivery, Return
    from celery_durable.transport.fetcher import Errand, Fetcher, Subscription

logger = logging.getLogger(__name__)

_TOLD = {"first": 0.02, "longest": 2.0, "growth": 4.0}  # looks of a consumer that is woken by notifications
_UNTOLD = {"first": 0.005, "longest": 0.3, "growth": 1.5}  # and of one that is not
_NO_ROOM = 0.05  # seconds between two looks whether a prefetch limit allows more
_FULL = 0.2  # seconds without room after which publishers had better wake somebody else
_BUSY = 0.5  # seconds of work without a pause after which nobody needs to wake this consumer
_BATCH = 100  # messages claimed at once where there is no prefetch limit
_LINGER = 5.0  # seconds that a session without consumers is kept
_LONGEST_PAUSE = 1.0
_SILENT = "This consumer was silent for too long: what it had claimed was handed to others"
_FULL_LOOK, _FULL_LOOK_UNTOLD = 5.0, 1.0  # seconds; `Heads`


class Fetching:
    """What the thread does.

    Arguments:
        fetcher: what it shares with the consumers.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self._broker = fetcher.broker
        self._lease = self._broker.options.lease
        self._listens = self._broker.options.listens
        self._heads = Heads(_FULL_LOOK if self._listens else _FULL_LOOK_UNTOLD)
        self._upkeep = Upkeep(self._broker.options)
        self._me: int | None = None
        self._held: set[Claimed] = set()
        self._named: list[str] = []
        self._wanted: set[str] = set()
        self._busy_since: float | None = None
        self._full_since: float | None = None
        self._looks = Looks(**(_TOLD if self._listens else _UNTOLD))
        self._turns = 0
        self._next_beat = 0.0
        self._next_look = time.monotonic() + self._upkeep.pause
        self._head = 0

    def run(self) -> None:
        """Serve until nobody consumes any more, again after each outage."""
        pause, away = 0.0, False
        while True:
            try:
                session = self._broker.session()
                try:
                    self._resume(session)
                    if away:
                        logger.warning("Postgres is back; consuming goes on")
                    pause, away = 0.0, False
                    self._serve(session)
                finally:
                    session.close()
            except PASSING as error:
                if not away:
                    logger.warning("The broker is away, trying again: %s", first_line(error))
                away = True
                self._upkeep.forget()
                self._fail_errands(error)
                if self._fetcher.stopping:
                    self._fetcher.ended(None)
                    return
            except BaseException as error:  # noqa: BLE001  (raised in the consumer's thread)
                told = with_hint(error) if isinstance(error, REFUSED) else error
                self._fail_errands(told)
                self._fetcher.ended(told)
                return
            else:
                if self._fetcher.ended(None):
                    return
                continue
            threading.Event().wait(pause)
            pause = min(max(2 * pause, 0.02), _LONGEST_PAUSE)

    def _resume(self, session: ConsumerSession) -> None:
        """Go on as the consumer this was, or begin as a new one."""
        self._named, self._wanted = self._names(), set()
        if self._me is not None and session.beat(self._me, self._named, wanted=()):
            session.listen(self._me)
            session.reconcile(self._me, [claim.id for claim in self._held])
        else:
            self._begin(session)
        self._next_beat = time.monotonic() + self._lease / 3
        self._heads.forget()
        self._starve()

    def _begin(self, session: ConsumerSession) -> None:
        """Be a new consumer, for the first time or because the one before was taken for dead.

        Raises `ConnectionResetError` if claims went with it. A worker treats that as a lost connection: it
        forgets what it has received and not begun, for that is somebody else's now.
        """
        reborn = self._me is not None
        if reborn:
            logger.warning(_SILENT)
        if self._held:
            self._fetcher.drop()
            raise ConnectionResetError(_SILENT)
        self._me = session.register(self._named)
        if reborn:
            self._fetcher.on_reborn()

    def _serve(self, session: ConsumerSession) -> None:
        """Work until nobody consumes; leave no claim behind."""
        idle_since: float | None = None
        while not self._fetcher.stopping:
            self._fetcher.bell.hush()
            self._show_life(session)
            came = self._turn(session)
            self._run_errands(session)
            now = time.monotonic()
            if self._fetcher.subscriptions or self._held or self._fetcher.errands:
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now - idle_since >= _LINGER:
                break
            if now >= self._next_look:
                assert self._me is not None  # noqa: S101  (registered)
                self._upkeep.run_once(session, self._me)
                self._next_look = now + self._upkeep.pause
            if now >= self._looks.next and self._look_around(session, now):
                continue
            if came:
                self._hear(session.heard())
            else:
                self._rest(session)
        self._fail_errands(ConnectionError("The connection to the broker was closed"))
        self._turn(session, claims=False)
        if self._me is not None:
            session.leave(self._me)
            self._me = None
            self._held.clear()

    # -- claims and acknowledgements ----------------------------------------------------------------------

    def _turn(self, session: ConsumerSession, *, claims: bool = True) -> bool:
        """Acknowledge, hand back and claim; return whether messages came."""
        done, back = _taken(self._fetcher.done), _taken(self._fetcher.back)
        groups = self._hungry_groups() if claims else []
        if not (done or back or groups):
            return False
        assert self._me is not None  # noqa: S101  (registered)
        orders = [Order(self._heads.places(queues), limit) for queues, limit, _ in groups]
        try:
            answers = session.turn(
                self._me,
                [claim for claim in done if claim in self._held],
                [one for one in back if one.claim in self._held],
                orders,
            )
        except BaseException:
            self._fetcher.done.extendleft(reversed(done))
            self._fetcher.back.extendleft(reversed(back))
            raise
        self._held.difference_update(done, (one.claim for one in back))
        if back:
            self._heads.came_back(min(one.claim.id for one in back))
            self._starve()
        now = time.monotonic()
        for (_, limit, subscriptions), found in zip(groups, answers, strict=True):
            self._take(subscriptions, found, limit, now)
        came = {delivery.queue for found in answers for delivery in found}
        self._note_work(session, now, came)
        return bool(came)

    def _take(self, subscriptions: list[Subscription], found: list[Delivery], limit: int, now: float) -> None:
        owners: dict[str, list[Subscription]] = {}
        for subscription in subscriptions:
            owners.setdefault(subscription.queue, []).append(subscription)
            subscription.hungry = len(found) >= limit
        for delivery in found:
            self._held.add(delivery.claim)
            self._heads.reached(delivery.queue, delivery.priority, delivery.claim.id, now)
        deal = [(owners[one.queue][one.claim.id % len(owners[one.queue])], one) for one in found]
        if deal:
            self._fetcher.deliver(deal)

    def _hungry_groups(self) -> list[tuple[list[str], int, list[Subscription]]]:
        """Return queues, room and subscriptions of what may claim something, channel by channel.

        The queues take turns in being the first, or one that never ends would keep the others waiting.
        """
        groups: dict[object, list[Subscription]] = {}
        with self._fetcher.lock:
            for one in self._fetcher.subscriptions:
                if one.hungry:
                    groups.setdefault((one.channel, one.no_ack), []).append(one)
        found = []
        for members in groups.values():
            room = self._room(members[0])
            if room > 0:
                queues = list(dict.fromkeys(one.queue for one in members))
                first = self._turns % len(queues)
                found.append((queues[first:] + queues[:first], room, members))
        self._turns += bool(found)  # a look that claims nothing takes nobody's turn
        return found

    def _room(self, subscription: Subscription) -> int:
        room = None if subscription.no_ack else subscription.room()
        buffered = self._fetcher.buffered(subscription.channel)
        return _BATCH - buffered if room is None else min(room - buffered, _BATCH)

    def _starve(self) -> None:
        """Let every subscription ask again."""
        with self._fetcher.lock:
            for one in self._fetcher.subscriptions:
                one.hungry = True

    # -- errands ------------------------------------------------------------------------------------------

    def _run_errands(self, session: ConsumerSession) -> None:
        assert self._me is not None  # noqa: S101  (registered)
        while self._fetcher.errands:
            errand: Errand = self._fetcher.errands[0]
            found = self._fetch_one(session, errand.queue)
            if not found and self._heads.raised:
                found = self._fetch_one(session, errand.queue, from_start=True)
            self._held.update(one.claim for one in found)
            self._fetcher.errands.popleft()
            errand.delivery = found[0] if found else None
            errand.finished.set()

    def _fetch_one(self, session: ConsumerSession, queue: str, *, from_start: bool = False) -> list[Delivery]:
        assert self._me is not None  # noqa: S101  (registered)
        places = self._heads.places([queue], from_start=from_start)
        (found,) = session.turn(self._me, orders=[Order(places, 1)])
        return found

    def _fail_errands(self, error: BaseException) -> None:
        for errand in _taken(self._fetcher.errands):
            errand.error = error
            errand.finished.set()

    # -- signs of life, and sleep -------------------------------------------------------------------------

    def _names(self) -> list[str]:
        with self._fetcher.lock:
            return sorted({one.queue for one in self._fetcher.subscriptions})

    def _show_life(self, session: ConsumerSession) -> None:
        names = self._names()
        if names == self._named and time.monotonic() < self._next_beat:
            return
        if self._fetcher.left:
            with self._fetcher.lock:
                left, self._fetcher.left = self._fetcher.left, set()
            session.used(sorted(left))
        self._named = names
        self._beat(session, self._wanted.intersection(names))

    def _beat(self, session: ConsumerSession, wanted: set[str]) -> None:
        """Renew the lease, and say which queues' messages this consumer is to be woken for."""
        assert self._me is not None  # noqa: S101  (registered)
        self._wanted = wanted
        self._next_beat = time.monotonic() + self._lease / 3
        if not session.beat(self._me, self._named, wanted=sorted(wanted)):
            self._begin(session)
            session.beat(self._me, self._named, wanted=sorted(wanted))
            self._starve()

    def _note_work(self, session: ConsumerSession, now: float, came: set[str]) -> None:
        """Tell publishers when nobody needs to wake this consumer for these queues."""
        if not came:
            return
        self._looks.worked()
        if self._busy_since is None:
            self._busy_since = now
        elif self._wanted & came and now - self._busy_since >= _BUSY:
            self._beat(session, self._wanted - came)

    def _rest(self, session: ConsumerSession) -> None:
        """Nothing came: sleep until something may have changed."""
        now = time.monotonic()
        full = self._full()
        open_to = set(self._named) - full
        if full:
            self._full_since = self._full_since or now
        else:
            if self._busy_since is not None and not self._listens:
                self._looks.rests(now)
            self._busy_since = self._full_since = None
        if self._listens and self._told_wrong(open_to, now):
            self._beat(session, open_to)
            self._looks.rests(time.monotonic())
            self._starve()  # what was published while nobody could know that this consumer sleeps
            return
        until = min(self._next_beat, self._next_look, self._looks.next)
        until = min(until, now + _NO_ROOM) if full else until
        self._hear(session.wait(self._fetcher.bell.fileno(), max(0.0, until - now)))

    def _told_wrong(self, open_to: set[str], now: float) -> bool:
        """Whether publishers are to be told anew what to wake this consumer for.

        That is a write, so a queue for which there is no room just now is told only when it stays like that.
        """
        if open_to - self._wanted:
            return True
        return bool(
            self._wanted - open_to and self._full_since is not None and now - self._full_since >= _FULL
        )

    def _full(self) -> set[str]:
        """Return the queues that may have something for which there is no room.

        What has something and is not full has been asked already, unless it has just become hungry.
        """
        with self._fetcher.lock:
            return {one.queue for one in self._fetcher.subscriptions if one.hungry}

    def _look_around(self, session: ConsumerSession, now: float) -> bool:
        """Ask what is ready, for a notification may be lost, or never sent; return whether there is news.

        A look from the start is for every queue; else those for which there is no room need not be asked for.
        """
        every = self._heads.full_look_due(now)
        hungry = self._full()
        names = self._named if every else [name for name in self._named if name not in hungry]
        if not names:
            self._looks.looked(now)
            return False
        found, head = session.ready(self._heads.places(names, from_start=every))
        after = time.monotonic()
        if every:
            self._heads.looked(now, after, found)
        ready = {place.queue for place in found}
        self._feed(ready)
        for place in self._heads.places(name for name in names if name not in ready):
            self._heads.reached(place.queue, place.priority, self._head, after)
        self._head = head or 0
        self._looks.looked(after)
        return not ready <= hungry

    def _feed(self, names: set[str]) -> None:
        with self._fetcher.lock:
            for one in self._fetcher.subscriptions:
                one.hungry = one.hungry or one.queue in names

    def _hear(self, notes: Sequence[str]) -> None:
        if not notes:
            return
        returned = [int(note.removeprefix(BACK)) for note in notes if note.startswith(BACK)]
        if returned:
            self._heads.came_back(min(returned))
        named = {note.removeprefix(IN_QUEUE) for note in notes if note.startswith(IN_QUEUE)}
        if len(named) == len(set(notes)):
            self._feed(named)
        else:
            self._starve()


def _taken(queue: deque[Claimed] | deque[Return] | deque[Errand]) -> list:  # type: ignore[type-arg]
    found = []
    while queue:
        found.append(queue.popleft())
    return found
