"""One consumer's session with the broker: its lease, its claims, and what wakes it.

Not to be shared by threads.
"""

from __future__ import annotations

import os
import selectors
import socket
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable.store import queries
from celery_durable.store.connections import closed_on_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from celery_durable.store.connections import Connection, Connections

GRACE = timedelta(seconds=60)
"""How long a queue that goes with its last consumer waits for that one to come back."""
IN_QUEUE = "queue:"
"""What a notification begins with that names the queue to look into."""
BACK = "back:"
"""What a notification begins with that names the first message of those that have come back."""


class Claimed(NamedTuple):
    """A claim of a message: nobody else's, and no later one of the same consumer."""

    consumer: int
    id: int
    number: int


class Place(NamedTuple):
    """One ordered scan: a queue, a priority, and the number up to which nothing is left."""

    queue: str
    priority: int
    floor: int


class Delivery(NamedTuple):
    """A message that was claimed."""

    claim: Claimed
    queue: str
    priority: int
    payload: bytes

    @property
    def place(self) -> Place:
        """The scan that begins with it."""
        return Place(self.queue, self.priority, self.claim.id - 1)


class Return(NamedTuple):
    """A claim that is handed back; `counted` when the message may be at fault."""

    claim: Claimed
    counted: bool


@dataclass(frozen=True)
class Order:
    """What to claim in one turn.

    Attributes:
        places: where, in order.
        limit: how many messages at most.
    """

    places: Sequence[Place]
    limit: int


class ConsumerSession:
    """A connection of a consumer's own.

    Arguments:
        connections: opens it.
        schema: the schema's name.
        listens: whether to be woken by notifications, which need a session that nobody shares.
        max_returns: how often a message comes back before it goes to the dead-letter queue.
    """

    def __init__(self, connections: Connections, *, schema: str, listens: bool, max_returns: int) -> None:
        self._connection: Connection = connections.connect()
        self._sql = queries.load("consumers", schema)
        self._listens = listens
        self._max_returns = max_returns
        if listens:
            with closed_on_error(self._connection):
                self._execute("plan_by_index", {})
        self._heard: list[str] = []
        self._connection.add_notify_handler(lambda notify: self._heard.append(notify.payload))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._connection.fileno(), selectors.EVENT_READ)

    def close(self) -> None:
        """End the session; the consumer's row and claims stay."""
        self._selector.close()
        self._connection.close()

    # -- the lease ----------------------------------------------------------------------------------------

    def register(self, names: Sequence[str]) -> int:
        """Begin as a new consumer of some queues; return its id."""
        parameters = {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "names": list(names),
            "listens": self._listens,
        }
        row = self._connection.execute(self._sql["register"], parameters).fetchone()
        assert row is not None  # noqa: S101  (an insert)
        self.listen(row["id"])
        return int(row["id"])

    def listen(self, consumer: int) -> None:
        """Be woken by what is sent to this consumer."""
        if self._listens:
            self._connection.execute(f"listen durable_consumer_{consumer:d}".encode())

    def beat(self, consumer: int, names: Sequence[str], *, wanted: Sequence[str]) -> bool:
        """Renew the lease; return False when this consumer was declared dead.

        Arguments:
            consumer: which.
            names: the queues that it consumes.
            wanted: those of which it waits to be told.
        """
        parameters = {
            "consumer": consumer,
            "names": list(names),
            "wanted": list(wanted) if self._listens else [],
            "listens": self._listens,
        }
        return self._connection.execute(self._sql["beat"], parameters).rowcount == 1

    def leave(self, consumer: int) -> None:
        """End as a consumer; what it has claimed is handed on."""
        rows = self._execute("leave", {"consumer": consumer, "grace": GRACE}).fetchall()
        self._rouse(rows)

    def reconcile(self, consumer: int, known: Sequence[int]) -> None:
        """Hand on what this consumer has claimed without hearing of it: the answer was lost."""
        rows = self._execute("reconcile", {"consumer": consumer, "ids": list(known)}).fetchall()
        self._rouse(rows)

    # -- messages -----------------------------------------------------------------------------------------

    def turn(
        self,
        consumer: int,
        done: Sequence[Claimed] = (),
        back: Sequence[Return] = (),
        orders: Sequence[Order] = (),
    ) -> list[list[Delivery]]:
        """Acknowledge, hand back and claim, in one round trip and one transaction.

        Returns each order's messages.
        """
        returned = None
        # A pipeline costs as much as a short statement: one alone, as on an idle worker, goes without.
        several = bool(done) + bool(back) + len(orders) > 1
        with self._connection.pipeline() if several else nullcontext():
            if done:
                self._execute("settle", {"consumer": consumer, **_columns(done)})
            if back:
                returned = self._execute("give_back", self._going_back(consumer, back))
            cursors = [self._order(consumer, order) for order in orders]
        if returned is not None:
            self._rouse(returned.fetchall())
        return [
            self._taken(consumer, order, cursor.fetchall())
            for order, cursor in zip(orders, cursors, strict=True)
        ]

    def _taken(self, consumer: int, order: Order, rows: list[dict[str, Any]]) -> list[Delivery]:
        """Return what was claimed; where somebody was faster, see what is behind it."""
        won = found = [row for row in rows if row["number"] is not None]
        while len(won) < len(rows):
            rows = self._order(consumer, Order(order.places, order.limit - len(found))).fetchall()
            won = [row for row in rows if row["number"] is not None]
            found += won
        return [_delivery(consumer, row) for row in sorted(found, key=_turn_of)]

    def _going_back(self, consumer: int, back: Sequence[Return]) -> dict[str, Any]:
        return {
            "consumer": consumer,
            "max_returns": self._max_returns,
            "counted": [one.counted for one in back],
            **_columns([one.claim for one in back]),
        }

    def _order(self, consumer: int, order: Order) -> Any:
        parameters = {"consumer": consumer, "limit": order.limit, **_places(order.places)}
        return self._connection.execute(self._sql["claim"], parameters, binary=True)

    def ready(self, places: Sequence[Place]) -> tuple[list[Place], int]:
        """Return which scans have something to claim, from where, and the number of the newest message."""
        rows = self._execute("ready", _places(places)).fetchall()
        found = [Place(row["queue"], row["priority"], row["id"] - 1) for row in rows if row["id"] is not None]
        return found, rows[0]["head"]

    def used(self, names: Sequence[str]) -> None:
        """Note that queues were consumed until now."""
        self._execute("used", {"names": list(names), "grace": GRACE})

    def _rouse(self, rows: list[dict[str, Any]]) -> None:
        """Let the consumers of these messages' queues look again."""
        if rows:
            first = min(row["first"] for row in rows)
            self._execute("rouse", {"names": list({row["queue"] for row in rows}), "first": first})

    # -- after the dead -----------------------------------------------------------------------------------

    def consumers(self) -> tuple[datetime, dict[int, tuple[int, bool]]]:
        """Return the database's time, and each consumer's heartbeat and whether its session has ended."""
        rows = self._execute("consumers", {}).fetchall()
        return rows[0]["now"], {row["id"]: (row["beat"], row["parted"]) for row in rows}

    def bury(self, dead: dict[int, int]) -> list[int]:
        """Remove consumers whose heartbeat is still this one; return their ids."""
        values = {"ids": list(dead), "beats": list(dead.values()), "grace": GRACE}
        rows = self._execute("bury", values).fetchall()
        return [row["id"] for row in rows]

    def recover(self) -> dict[str, int]:
        """Hand on the claims of consumers that are no more; return how many of each queue."""
        rows = self._execute("recover", {"max_returns": self._max_returns}).fetchall()
        self._rouse(rows)
        return {row["queue"]: row["messages"] for row in rows}

    def tidy(self, grace: timedelta = GRACE) -> tuple[int, list[str]]:
        """Remove expired messages and queues; return how many messages, and which queues."""
        with self._connection.pipeline():
            expired = self._execute("expire", {})
            pruned = self._execute("prune_queues", {"grace": grace})
        names = [row["name"] for row in pruned.fetchall()]
        for name in names:
            self._execute("empty", {"queue": name})
        return expired.rowcount, names

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self, bell: int, timeout: float) -> list[str]:
        """Wait for a notification, or for a byte in the pipe `bell`; return the notifications' texts."""
        if bell not in self._selector.get_map():
            self._selector.register(bell, selectors.EVENT_READ)
        self._selector.select(0 if self._heard else timeout)
        self._connection.pgconn.consume_input()
        while (notification := self._connection.pgconn.notifies()) is not None:
            self._heard.append(notification.extra.decode())
        return self.heard()

    def heard(self) -> list[str]:
        """Return the texts of the notifications that came with answers."""
        heard, self._heard = self._heard, []
        return heard

    def _execute(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._connection.execute(self._sql[name], parameters)


def _columns(claims: Sequence[Claimed]) -> dict[str, list[int]]:
    return {"ids": [claim.id for claim in claims], "numbers": [claim.number for claim in claims]}


def _places(places: Sequence[Place]) -> dict[str, Any]:
    return {
        "queues": [place.queue for place in places],
        "priorities": [place.priority for place in places],
        "floors": [place.floor for place in places],
    }


def _turn_of(row: dict[str, Any]) -> tuple[int, int]:
    return -row["priority"], row["id"]


def _delivery(consumer: int, row: dict[str, Any]) -> Delivery:
    return Delivery(
        Claimed(consumer, row["id"], row["number"]), row["queue"], row["priority"], bytes(row["payload"])
    )
