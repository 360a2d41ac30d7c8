"""Children of a run: started with the wait for them, and known again at the replay by their ids."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_durable import checkpoint as outcomes
from celery_durable import texts
from celery_durable.exceptions import DurableError, PayloadTooLargeError
from celery_durable.store.writes import Children

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable import context
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.executor.history import History
    from celery_durable.executor.ids import DerivedIds
    from celery_durable.executor.waiting import Waiter
    from celery_durable.seam import Seam
    from celery_durable.store.writes import NewRun


class Ask(NamedTuple):
    """A body asks for children.

    Attributes:
        name: what the wait is called, such as `gather`.
        arguments: what is compared at a replay, as a digest and in words.
        size: how many children.
        new_runs: makes them, under the ids it is given.
        abreast: how many of them may be executed at a time.
        detached: whether they go on when this run is cancelled.
    """

    name: str
    arguments: tuple[bytes, str]
    size: int
    new_runs: Callable[[list[str]], list[NewRun]]
    abreast: int | None = None
    detached: bool = False


class Fan:
    """Fan-out and fan-in for one attempt.

    Arguments:
        run: the run's id.
        waiter: how it waits.
        history: what is stored of it.
        ids: the ids of children.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(
        self,
        run: str,
        waiter: Waiter,
        history: History,
        ids: DerivedIds,
        *,
        settings: Settings,
        seam: Seam,
    ) -> None:
        self._run = run
        self._waiter = waiter
        self._history = history
        self._ids = ids
        self._settings = settings
        self._seam = seam

    def await_all(self, frame: context.Frame, ask: Ask) -> list[tuple[bool, Any]]:
        """Start children, unless this wait has before; return how each of them ended, when all have."""
        with self._waiter.call(frame, ask.name) as key:
            known = self._history.meet_wait(key, outcomes.CHILDREN)
            if known is not None:
                self._history.compare(known, ask.arguments)
            if known is None or not known.finished:
                outcome, codec, output = self._ended(key, ask, known)
            else:
                outcome, codec, output = known.outcome, known.codec, known.output
            if outcome == outcomes.ERROR:
                raise self._seam.load_error(codec, output or b"")
            ended = [self._seam.outcome_of(*one) for one in _rows(output or b"[]")]
        if len(ended) != ask.size:
            message = f"{key!r} started {ask.size} children, {len(ended)} are left: who deleted the others?"
            raise DurableError(message)
        return ended

    def _ended(self, key: str, ask: Ask, known: Checkpoint | None) -> tuple[str, str | None, bytes | None]:
        again = self._history.to_take_up(key, ask.arguments[0]) if known is None else None
        begun = (known.output or b"").decode() if known is not None else again
        wait_id = begun or str(self._ids.wait(key))
        most = self._settings.max_payload
        message = (
            f"The results of the {ask.size} children of {key!r} are larger than durable_max_payload "
            f"({most:,} bytes) together: let them store their results and return where"
        )
        late = PayloadTooLargeError(message, step=key, limit=most)
        codec, dumped = self._seam.dump_error(late)
        wait = self._waiter.wait(
            key,
            outcomes.CHILDREN,
            ask.arguments[1],
            digest=ask.arguments[0],
            awaits=wait_id,
            output=wait_id.encode(),
            late=dumped,
            late_codec=codec,
            late_error=texts.line(late),
            most=most,
            again=again is not None,
            version=self._settings.version,
        )
        children = None
        if begun is None:
            self._waiter.may_wait()
            ids = [self._ids.of(f"{key}/{number}") for number in range(ask.size)]
            children = Children(ask.new_runs(ids), self._run, ask.abreast, ask.detached)
        waited = self._waiter.leave(wait, children)
        return waited.outcome, waited.codec, waited.output


def _rows(output: bytes) -> list[tuple[str, str | None, str | None, bytes | None]]:
    """Return state, reason, content type and result of each child, as the store has put them together."""
    return [
        (state, reason, kind, None if result is None else b64decode(result))
        for _, state, reason, kind, result in json.loads(output)
    ]
