"""Waits of a body: stored when they are met, left for, and found again at the replay."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_durable import checkpoint as outcomes
from celery_durable import context, texts
from celery_durable.exceptions import RunCancelled, SignalTimeout, StepUsageError
from celery_durable.seam import Suspended
from celery_durable.serialization import build
from celery_durable.store.writes import Stored, Wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.executor.chance import Chance
    from celery_durable.executor.history import History
    from celery_durable.executor.journal import Journal
    from celery_durable.executor.keys import Keys
    from celery_durable.seam import Seam
    from celery_durable.store.waits import Waited
    from celery_durable.store.writes import Children, NewRun

# A wait is told by its key: the due time of one that was met stands, whatever the code says by now.
_NO_DIGEST = b"\0" * 16


class Waiter:
    """Waits for one attempt.

    Arguments:
        journal: where they are stored.
        history: what is stored of them.
        keys: where they get their keys.
        chance: the database's time.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    def __init__(
        self,
        journal: Journal,
        history: History,
        keys: Keys,
        *,
        chance: Chance,
        settings: Settings,
        seam: Seam,
    ) -> None:
        self._journal = journal
        self._history = history
        self._keys = keys
        self._chance = chance
        self._settings = settings
        self._seam = seam

    def sleep(self, frame: context.Frame, length: timedelta | None, until: datetime | None) -> None:
        """Return after `length`, or at `until`; the run leaves its worker meanwhile if that is long."""
        with self.call(frame, "sleep") as key:
            stored = self._history.due(key)
            due = stored or until
            left = due - self._chance.reckoned() if due is not None else length or timedelta(0)
            if stored is None and left <= timedelta(0):
                return  # no wait at all, at no replay: nothing of it is stored
            if stored is None and left > context.LONGEST_WAIT:
                message = f"sleep_until({until}) is more than a hundred years away"
                raise StepUsageError(message)
            known = self._history.meet_wait(key, outcomes.SLEEP)
            if left <= timedelta(0) or (known is not None and known.finished):
                return
            wait = self.wait(key, outcomes.SLEEP, str(until or length), length, until)
            on_a_loop = frame.crew is not None  # which would stand still meanwhile, for all that it drives
            if on_a_loop or left.total_seconds() > self._settings.step_sleep:
                self.leave(wait)
            else:
                self._pause(wait, known, left.total_seconds())

    def signal(self, frame: context.Frame, name: str, timeout: timedelta | None, hint: Any) -> Any:
        """Return the payload of the oldest signal of this name that nobody has received yet."""
        with self.call(frame, f"wait_for_signal:{name}") as key:
            known = self._history.meet_wait(key, outcomes.SIGNAL)
            if known is None or not known.finished:
                outcome, codec, output = self._received(key, name, timeout)
            else:
                outcome, codec, output = known.outcome, known.codec, known.output
            if outcome == outcomes.ERROR:
                raise self._seam.load_error(codec, output or b"")
            payload = self._seam.codec(codec)[1].decode(output or b"", hint)
            return build(payload, hint, where=f"signal {name!r}")

    def _received(
        self, key: str, name: str, timeout: timedelta | None
    ) -> tuple[str, str | None, bytes | None]:
        timeout = None if timeout is None else max(timeout, timedelta(0))
        late = SignalTimeout(
            f"No signal {name!r} came {f'within {timeout}' if timeout else 'at once'}", signal=name
        )
        codec, dumped = self._seam.dump_error(late)
        wait = self.wait(
            key,
            outcomes.SIGNAL,
            "" if timeout is None else f"timeout={timeout}",
            timeout,
            awaits=name,
            late=dumped,
            late_codec=codec,
            late_error=texts.line(late),
        )
        waited = self.leave(wait)
        return waited.outcome, waited.codec, waited.output

    # -- one wait ---------------------------------------------------------------------------------------

    @contextmanager
    def call(self, frame: context.Frame, name: str) -> Iterator[str]:
        """Give a wait its key; it belongs to the body itself, which has one order."""
        if frame.step is not None or threading.get_ident() != self._journal.thread:
            where = f"the step {frame.step!r}" if frame.step is not None else "a thread of the body's own"
            message = f"{name} is called in {where}: a run waits in its body, between its steps"
            raise StepUsageError(message, step=name)
        base = context.place(frame, name) + name
        key = self._keys.begin(base, keyed=False)
        try:
            yield key
        finally:
            self._keys.end(base)

    def wait(
        self,
        key: str,
        kind: str,
        arguments: str,
        delay: timedelta | None = None,
        until: datetime | None = None,
        *,
        digest: bytes = _NO_DIGEST,
        **more: Any,
    ) -> Wait:
        """Return a wait as it is stored."""
        return Wait(
            key=key,
            seq=self._journal.next_seq(),
            kind=kind,
            digest=digest,
            arguments=arguments,
            delay=None if until is not None else delay,
            until=until,
            clock=self._chance.drawn(),
            **more,
        )

    def _pause(self, wait: Wait, known: Checkpoint | None, seconds: float) -> None:
        """Wait on the worker: too short to be worth leaving it."""
        self.may_wait()
        self._journal.may_go_on()
        if known is None:
            waited = self._journal.wait(wait, leave=False)
            if waited.stop:
                raise RunCancelled
            seconds = waited.remaining or 0.0
        threading.Event().wait(seconds)

    def leave(self, wait: Wait, children: Children | None = None) -> Waited:
        """Store a wait and leave the worker for it; return only if what it waits for is there."""
        self.may_wait()
        if self._journal.in_flight():  # steps on an event loop: they are finished before the run leaves
            later = partial(self._later, wait, children)
            raise self._journal.leave(Suspended("suspended", reason=wait.kind, later=later))
        waited = self._journal.wait(wait, leave=True, children=children)
        if waited.left:
            raise self._journal.leave(_left(wait, waited, children))
        if waited.stop:
            raise RunCancelled
        return waited

    def _later(self, wait: Wait, children: Children | None) -> Suspended | None:
        waited = self._journal.wait(wait, leave=True, children=children)
        return _left(wait, waited, children) if waited.left else None

    def may_wait(self) -> None:
        """A run that is leaving, or cancelled, waits for nothing more, not even while it cleans up."""
        if self._journal.leaving is not None:
            raise self._journal.leaving
        if self._journal.replaying:
            self._journal.may_go_on()
        if self._journal.cancelled:
            self._journal.told = True
            raise RunCancelled


def to_publish(runs: Sequence[NewRun], started: dict[str, str]) -> list[Stored]:
    """Return the messages to send: of what was stored, or of all when the answer about them was lost."""
    return [
        Stored(run.id, run.message, run.body)
        for run in runs
        if run.publish and started.get(run.id, "waiting" if started else "pending") == "pending"
    ]


def _left(wait: Wait, waited: Waited, children: Children | None) -> Suspended:
    messages = waited.restarted if children is None else to_publish(children.runs, waited.started)
    return Suspended("suspended", reason=wait.kind, stored=True, messages=messages)
