"""What an attempt writes, and what its writes tell it: the lease is lost, the run is asked to stop."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery_durable import context
from celery_durable.checkpoint import OK, StepWrite
from celery_durable.exceptions import LeaseLostError, RunCancelled, SerializationError
from celery_durable.executor.ids import DerivedIds
from celery_durable.seam import ReplayedError, Suspended
from celery_durable.store.forms import Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.executor.chance import Chance
    from celery_durable.executor.crew import Crew
    from celery_durable.run import Claim
    from celery_durable.seam import Seam
    from celery_durable.store.forms import Kept, TransactionForm
    from celery_durable.store.runs import RunStore
    from celery_durable.store.transactions import TransactionStore
    from celery_durable.store.waits import Waited
    from celery_durable.store.writes import Children, Wait

_A_WHILE = 1.0  # seconds since a write


class Journal:
    """The writes of one attempt.

    Attributes:
        lost: whether another attempt owns the run now.
        cancelled: whether somebody asked the run to stop.
        leaving: how the run leaves its worker; what is still executed of its body can do nothing more.
        thread: the thread that executes the body itself.
        in_flight: says whether steps are being executed beside the body.
        replaying: whether the body only replays, to find out what it has registered.
        compensates: says whether the run has compensations; None while that is not known.
        to_note: whether the store has to know that before the next step begins.
        left_beside: whether steps were being executed beside the body when it left its worker.
        cleans: whether the body has been told to stop.
        cleaned: whether it has begun something after that.
        at_stop: called when it is told to stop first.
        done: keys of the steps that this attempt has stored as done.

    Arguments:
        claim: the lease.
        runs: where to write.
        seam: Celery's side.
        chance: what the body draws, some of which is stored with its steps.
        last_seq: the number of the last stored step.
    """

    def __init__(self, claim: Claim, runs: RunStore, seam: Seam, chance: Chance, *, last_seq: int) -> None:
        self.claim = claim
        self.runs = runs
        self.lost = False
        self.cancelled = claim.cancel_requested
        self._seam = seam
        self._chance = chance
        self.leaving: Suspended | None = None
        self._told = False
        self._heard = time.monotonic()
        self._seq = last_seq
        self._notes: dict[str, list[Callable[[], str]]] = {}
        self._lock = threading.Lock()
        self.thread = threading.get_ident()
        self.in_flight: Callable[[], bool] = lambda: False
        self.replaying = False
        self.compensates: Callable[[], bool | None] = lambda: False
        self.to_note = False
        self.left_beside = False
        self.cleans = False
        self.cleaned = False
        self.at_stop: Callable[[], None] = lambda: None
        self.done: list[str] = []
        self._owed: list[StepWrite] = []

    @property
    def told(self) -> bool:
        """Whether the body, or this asyncio task of it, has been told that the run is asked to stop."""
        crew = self._crew
        return self._told if crew is None else crew.told

    @told.setter
    def told(self, told: bool) -> None:
        if told and not self.cleans:
            self.cleans = True
            self.at_stop()
        crew = self._crew
        if crew is None:
            self._told = told
        else:
            crew.told = told

    @property
    def _crew(self) -> Crew | None:
        frame = context.here()
        return None if frame is None else frame.crew

    def may_go_on(self) -> None:
        """Stop at a step boundary: the lease is gone, the run is cancelled, or the worker shuts down."""
        if self.leaving is not None:
            raise self.leaving
        if self.lost:
            raise LeaseLostError
        if self.cancelled:
            if not self.told:
                self.told = True  # each task once: it may clean up with further steps
                raise RunCancelled
            self.cleaned = True
        if self.replaying:
            raise ReplayedError
        if self._seam.draining():
            raise self.leave(Suspended("released"))
        self._pay()

    @property
    def out_of_touch(self) -> bool:
        """Whether the last answer, which says whether somebody asked the run to stop, is old."""
        return time.monotonic() - self._heard >= _A_WHILE and not self.cancelled and not self.replaying

    def ask(self) -> None:
        """Learn whether somebody asked the run to stop, unless another step has learned it meanwhile."""
        if self.out_of_touch:
            self.store(lambda: self.runs.asked_to_stop(self.claim.key, self.claim.fence))

    def _hear(self, *, stop: bool) -> None:
        """Note what an answer says: whether the run is asked to stop."""
        self.cancelled = stop or self.cancelled
        self._heard = time.monotonic()

    def owe(self, entry: StepWrite) -> None:
        """Keep what is stored only if the body goes on, to a next step or wait."""
        self._owed.append(entry)

    def _pay(self) -> None:
        if self.to_note:
            self.to_note = False
            self.store(lambda: self.runs.note_compensates(self.claim.key, self.claim.fence))
        while self._owed:
            self.save(self._owed.pop(0))

    def leave(self, suspended: Suspended) -> Suspended:
        """Note how the run leaves its worker: a body that catches it all the same gets no further."""
        self.leaving = self.leaving or suspended
        self.left_beside = self.left_beside or self.in_flight()
        return self.leaving

    @property
    def last_seq(self) -> int:
        """The number of the latest step."""
        return self._seq

    def next_seq(self) -> int:
        """Return the number of the next step."""
        with self._lock:
            self._seq += 1
            return self._seq

    def entry(
        self,
        key: str,
        outcome: str,
        arguments: tuple[bytes, str],
        *,
        tries: int,
        spent: int = 0,
        seq: int | None = None,
        behind: int | None = None,
        output: bytes | None = None,
        codec: str | None = None,
        error: str | None = None,
        seconds: float = 0.0,
    ) -> StepWrite:
        """Return what is to be stored of a step, with the moments drawn since the last one."""
        return StepWrite(
            key=key,
            seq=seq if seq is not None else self.next_seq(),
            outcome=outcome,
            output=output,
            codec=codec,
            digest=arguments[0],
            arguments=arguments[1],
            tries=tries,
            spent=spent,
            error=error,
            clock=self._chance.drawn(),
            seconds=seconds,
            calls=self._noted(key) if self._notes else None,
            behind=behind,
        )

    def note(self, step: str, evidence: Callable[[], str]) -> None:
        """Keep evidence of something that a step's body does, to be stored with the step's next write."""
        with self._lock:
            self._notes.setdefault(step, []).append(evidence)

    def _noted(self, step: str) -> list[str] | None:
        with self._lock:
            notes = self._notes.pop(step, None)
        return None if notes is None else [evidence() for evidence in notes]

    def save(self, entry: StepWrite, *, relaxed: bool = False) -> None:
        """Store a step."""
        self.store(lambda: self.runs.checkpoint(self.claim.key, self.claim.fence, entry, relaxed=relaxed))
        if entry.outcome == OK:
            self.done.append(entry.key)

    def note_too_late(self, key: str) -> None:
        """Store that a step was cancelled as its outcome was being stored: at a replay it is so again."""
        self.store(lambda: self.runs.note_too_late(self.claim.key, self.claim.fence, key))

    def store(self, write: Callable[[], bool]) -> None:
        """Do a write that says whether the run is asked to stop."""
        try:
            self._hear(stop=write())
        except LeaseLostError:
            self.lost = True
            raise

    def transact(
        self,
        transactions: TransactionStore,
        key: str,
        form: TransactionForm,
        body: Callable[[Any], StepWrite],
    ) -> Kept:
        """Run a body whose writes commit together with what it returns to be stored."""
        place = Place(self.claim.key, DerivedIds(self.claim).run, self.claim.attempt, self.claim.fence, key)
        entry: StepWrite | None = None

        def inside(handle: Any) -> StepWrite:
            nonlocal entry
            self._take_back(entry)
            entry = body(handle)
            return entry

        try:
            kept = transactions.perform(place, form, inside, self.may_go_on)
        except BaseException as error:
            self._take_back(entry)
            self.lost = self.lost or isinstance(error, LeaseLostError)
            raise
        self._hear(stop=kept.stop)
        self.done.append(key)
        if entry is not None and entry.calls:
            self.runs.note_calls(self.claim.key, self.claim.fence, entry.calls)
        return kept

    def _take_back(self, entry: StepWrite | None) -> None:
        """Return the moments of what was not stored after all."""
        if entry is not None:
            self._chance.put_back(entry.clock)

    def wait(self, wait: Wait, *, leave: bool, children: Children | None = None) -> Waited:
        """Store a wait, start its children, and leave the worker for it if that is wanted."""
        self._pay()
        waits, claim = self.runs.waits, self.claim
        wait = replace(wait, compensates=self.compensates())
        try:
            if wait.again:
                waited = waits.take_up(claim.key, claim.fence, wait)
            elif leave:
                waited = waits.leave(claim.key, claim.fence, wait, children)
            else:
                waited = waits.begin(claim.key, claim.fence, wait)
        except LeaseLostError:
            self.lost = True
            raise
        self._hear(stop=waited.stop)
        self.told = self.told or waited.stop
        return waited

    def annotate(self, tags: dict[str, str] | None, progress: Any) -> None:
        """Store labels or progress, for people to see."""
        try:
            self.runs.annotate(
                self.claim.key,
                self.claim.fence,
                tags=None if tags is None else json.dumps(tags, allow_nan=False),
                progress=None if progress is None else json.dumps(progress, allow_nan=False),
            )
        except LeaseLostError:
            self.lost = True
            raise
        except (TypeError, ValueError) as error:
            message = f"Tags and progress are kept as JSON, and this is none: {error}"
            raise SerializationError(message) from error
