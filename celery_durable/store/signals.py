"""Signals on their way to a run."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable.store import queries
from celery_durable.store.writes import Stored

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from celery_durable.store.connections import Connections

_BUDGET = 15.0


@dataclass(frozen=True)
class Delivery:
    """What became of a signal.

    Attributes:
        verdict: `kept` for a later wait, `woken` with it, `known` by its idempotency key; or not delivered:
            `unknown` run, `final` run, `expired`.
        standing: the run's state.
        wake: the message to publish.
    """

    verdict: str
    standing: str | None
    wake: Stored | None


class SignalStore:
    """The statement that delivers a signal.

    Arguments:
        connections: where to write.
        schema: the schema's name.
        check: how long after a publish the keeper looks whether the message was lost.
    """

    def __init__(self, connections: Connections, *, schema: str, check: timedelta) -> None:
        self._connections = connections
        self._sql = queries.load("signals", schema)
        self._check = check

    def deliver(
        self,
        run_id: str,
        name: str,
        payload: bytes,
        *,
        codec: str,
        once: str | None = None,
        actor: str | None = None,
        until: datetime | None = None,
    ) -> Delivery:
        """Keep a signal for its run and wake the run if it waits for it; the caller publishes the message.

        Arguments:
            run_id: the run's id.
            name: the signal's name.
            payload: its encoded payload.
            codec: what it is encoded with.
            once: an idempotency key: a second signal of this name and key is none.
            actor: who sends it.
            until: when it is too late to send it, by the database's clock.
        """
        parameters = {
            "id": run_id,
            "name": name,
            "payload": payload,
            "codec": codec,
            "once": once or str(uuid.uuid4()),  # also tells the write from its repetition after a lost answer
            "actor": actor,
            "until": until,
            "check": self._check,
        }
        row = self._connections.patiently(
            lambda connection: connection.execute(self._sql["deliver"], parameters).fetchone(), budget=_BUDGET
        )
        told = row or {}
        wake = None if told["message"] is None else Stored(run_id, told["message"], told["body"])
        return Delivery(told["verdict"], told["standing"], wake)
