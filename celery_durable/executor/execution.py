"""One attempt of a run, as a list of verbs that a body calls."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from celery_durable import checkpoint as outcomes
from celery_durable import context
from celery_durable.checkpoint import Checkpoint, StepWrite, occurrence
from celery_durable.exceptions import LeaseLostError, StepUsageError
from celery_durable.executor.chance import Chance
from celery_durable.executor.children import Fan
from celery_durable.executor.history import PATCH, History
from celery_durable.executor.ids import DerivedIds
from celery_durable.executor.journal import Journal
from celery_durable.executor.keys import Keys
from celery_durable.executor.parallel import side_by_side
from celery_durable.executor.performing import Call, Performer
from celery_durable.executor.rollbacks import Rollbacks
from celery_durable.executor.waiting import Waiter
from celery_durable.seam import Continued, Suspended
from celery_durable.serialization import digest
from celery_durable.tokens import Token, sign

if TYPE_CHECKING:
    import random as random_module
    import uuid
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import datetime

    from celery_durable.config import Settings
    from celery_durable.executor.children import Ask
    from celery_durable.executor.crew import Muster
    from celery_durable.run import Claim
    from celery_durable.seam import Seam
    from celery_durable.steps import Step, StepCall
    from celery_durable.store.runs import RunStore
    from celery_durable.store.writes import NewRun, PlainMessage

_NO_DIGEST = b"\0" * 16


class Execution:
    """One attempt of a run.

    Attributes:
        rehearsed: whether this only replays what is stored, and nothing of it may be written.
        retry: what the body has asked for a retry with.

    Arguments:
        claim: the lease.
        history: the run's stored steps.
        runs: where to write.
        settings: the app's durable settings.
        seam: Celery's side.
    """

    rehearsed = False

    def __init__(
        self, claim: Claim, history: list[Checkpoint], *, runs: RunStore, settings: Settings, seam: Seam
    ) -> None:
        self.claim = claim
        self.settings = settings
        self.retry: Exception | None = None
        self.successor: NewRun | None = None
        self.rewritten = False
        self.replaced = False
        self.outgoing: list[NewRun | PlainMessage] = []
        self._history = History(history, task=claim.task, settings=settings, seam=seam)
        self._keys = Keys()
        self._rollbacks = Rollbacks(self._keys)
        self._ids = DerivedIds(claim)
        self._chance = Chance(claim, self._history.clock)
        self._journal = Journal(claim, runs, seam, self._chance, last_seq=self._history.last_seq)
        self._journal.cancelled = claim.cancel_requested or self.overdue
        self._journal.at_stop = self._note_what_is_left
        self._journal.compensates = lambda: self.compensates
        self._expects: Callable[[], bool] = lambda: False  # an outcome that is stored, and not heard of yet
        self._left_at_stop: int | None = None
        self._performer = Performer(self._journal, settings, seam)
        self._branches: dict[str, bool] = {}
        self._caller: Any = None
        self._waiter = Waiter(
            self._journal, self._history, self._keys, chance=self._chance, settings=settings, seam=seam
        )
        self._fan = Fan(claim.id, self._waiter, self._history, self._ids, settings=settings, seam=seam)

    @property
    def id(self) -> str:
        """The run's id."""
        return self.claim.id

    @property
    def name(self) -> str:
        """The run's id, told apart from those tasks that it replaced (`Task.replace` keeps the id)."""
        return self._ids.run

    @property
    def task(self) -> str:
        """The task's name."""
        return self.claim.task

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.claim.attempt

    @property
    def lost(self) -> bool:
        """Whether another attempt owns the run now."""
        return self._journal.lost

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this run to stop."""
        return self._journal.cancelled

    @property
    def cleans(self) -> bool:
        """Whether the body has been told to stop."""
        return self._journal.cleans

    @property
    def cleaned(self) -> bool:
        """Whether the body has executed steps after it was told to stop, in this or an earlier attempt."""
        left = self._left_at_stop
        replayed = self._journal.cancelled and left is not None and self._history.left < left
        return self._journal.cleaned or replayed

    def _note_what_is_left(self) -> None:
        self._left_at_stop = self._history.left

    @property
    def overdue(self) -> bool:
        """Whether this run's deadline has passed."""
        deadline = self.claim.deadline
        return deadline is not None and deadline <= self._chance.reckoned()

    @property
    def leaving(self) -> Suspended | None:
        """How the run leaves its worker, once it does: whatever its body still makes of that."""
        return self._journal.leaving

    @property
    def inside(self) -> str | None:
        """The key of the step whose body the attempt's own thread is in."""
        return self._performer.inside

    def step(
        self, frame: context.Frame, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the step's stored outcome, or run it and store it."""
        base = context.place(frame, step.name) + (step.step_options.key or step.name)
        key = self._keys.begin(base, keyed=step.step_options.key is not None)
        try:
            arguments = self._digest(step, args, kwargs)
            return self._step(frame, step, Call(key, arguments, args, kwargs, behind=self._behind(frame)))
        finally:
            self._keys.end(base)

    def step_later(
        self, frame: context.Frame, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Return what awaits the step; its key is given now, in the order of the calls."""
        arguments = self._digest(step, args, kwargs)
        base = context.place(frame, step.name) + (step.step_options.key or step.name)
        if frame.crew is None and step.step_options.key is None:
            self._in_one_task(step.name)
        key = self._keys.begin(base, keyed=step.step_options.key is not None)
        self._keys.end(base)
        return self._awaited(frame, step, Call(key, arguments, args, kwargs))

    async def _awaited(self, frame: context.Frame, step: Step[Any, Any], call: Call) -> Any:
        from celery_durable.executor import awaiting  # with asyncio, which most apps do not need

        known = self._history.find(call.key)
        if known is not None and known.finished:
            self._history.compare(known, call.arguments)
            await awaiting.heard_again(frame, known)
            return self._history.kept(step, known)
        call = call._replace(behind=self._behind(frame))
        body = awaiting.AwaitedBody(frame, step, call, self._journal)
        with awaiting.flight(frame):
            return await awaiting.awaited(self._performer.tries(step, call, known, body.value), body)

    def _in_one_task(self, step: str) -> None:
        """Refuse a step in a second asyncio task of a loop of the body's own: they have no order."""
        from celery_durable.executor import awaiting  # with asyncio

        here, before = awaiting.current_task(), self._caller
        if here is not None and before is not None and before is not here and not before.done():
            message = (
                f"Async steps, now {step!r}, are called in several tasks of asyncio.run, and would get "
                f"their keys in the order in which they happen to come. Make the task itself an `async def`, "
                f"whose asyncio tasks have keys of their own, or give each call one: step.options(key=...)"
            )
            raise StepUsageError(message, step=step)
        self._caller = here or before

    def _behind(self, frame: context.Frame) -> int | None:
        """Return the number of the latest outcome that a call can know of which others overlap."""
        return None if frame.crew is None else frame.crew.muster.order.behind(self._journal.last_seq)

    async def led(self, coroutine: Coroutine[Any, Any, Any], frame: context.Frame, muster: Muster) -> Any:
        """Run an `async def` body on the event loop of this thread."""
        journal = self._journal
        before, journal.thread = journal.thread, threading.get_ident()
        journal.in_flight = lambda: bool(muster.steps)
        self._expects = lambda: muster.order.expects
        try:
            return await muster.lead(coroutine, frame, self.claim.seed)
        finally:
            journal.thread = before

    def muster(self) -> Muster:
        """Return what keeps the tasks of an `async def` body together."""
        from celery_durable.executor.crew import Muster

        return Muster(self._journal)

    def _digest(
        self, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, str]:
        return digest(step.named_arguments(args, kwargs))

    def _step(self, frame: context.Frame, step: Step[Any, Any], call: Call) -> Any:
        known = self._history.find(call.key)
        if known is not None and known.finished:
            return self._history.outcome(step, known, call.arguments)
        return self._performer.perform(frame, step, call, known)

    def steps(
        self, frame: context.Frame, calls: Sequence[StepCall], threads: int | None
    ) -> list[tuple[bool, Any]]:
        """Make calls of steps side by side; return for each, in their order, success and value, or error.

        They get their keys here, in the order of the calls, so that it does not matter which is done first.
        """
        work: list[Callable[[], Any]] = []
        replayed, seq = True, self._journal.next_seq()
        for call in calls:
            if call.step.is_async:
                message = f"{call.step.name} is an async def step: await it, or several with asyncio.gather"
                raise StepUsageError(message, step=call.step.name)
            base = context.place(frame, call.step.name) + (call.step.step_options.key or call.step.name)
            key = self._keys.begin(base, keyed=call.step.step_options.key is not None)
            self._keys.end(base)
            known = self._history.find(key)
            replayed = replayed and known is not None and known.finished
            arguments = self._digest(call.step, call.args, call.kwargs)
            chosen = Call(key, arguments, call.args, call.kwargs, seq)
            work.append(partial(self._step, frame, call.step, chosen))
        return side_by_side(work, threads=1 if replayed else threads)

    def on_rollback(
        self, frame: context.Frame, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note what takes back what the body has done so far."""
        if not self._rollbacks and not self.standing:
            self._journal.to_note = True  # else everybody knows that it may have some, by its finished step
        self._rollbacks.register(frame.scope, step, args, kwargs)

    @property
    def compensates(self) -> bool | None:
        """Whether the body has registered compensations; None when it has not heard of all that is done."""
        if self._rollbacks:
            return True
        return None if self._journal.left_beside or self._history.left or self._expects() else False

    @property
    def compensations(self) -> list[str]:
        """The keys of the compensations that are registered."""
        return self._rollbacks.keys

    @property
    def standing(self) -> tuple[str, ...]:
        """The keys of the steps that are done, and of compensations that are made."""
        return tuple(dict.fromkeys((*self._history.standing, *self._journal.done)))

    @property
    def ahead(self) -> tuple[str, ...]:
        """What is stored of steps and waits that the body has not come by, in their order."""
        return self._history.ahead

    def replay_only(self) -> None:
        """Let the body do nothing new: it is executed for what it registers.

        A cancelled run may still clean up, unless it has come to its compensations before.
        """
        cancelled = self.claim.ending == "cancelled"
        self._journal.cancelled, self._journal.told = cancelled, not cancelled
        self._journal.replaying = not cancelled or self.claim.rollbacks is not None

    def rolled_back(self, keys: Sequence[str], wait: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        """Make the compensations, the last one first; those that are stored are not made again.

        Arguments:
            keys: of those that are to be made.
            wait: awaits an `async def` one.
        """
        self._journal.replaying, self._journal.told = False, True
        frame = context.Frame(self)
        for one in self._rollbacks.backwards(keys):
            step: Any = one.step
            call = Call(one.key, digest(step.named_arguments(one.args, one.kwargs)), one.args, one.kwargs)
            if step.is_async:
                wait(self._awaited(frame, step, call))
            else:
                self._step(frame, step, call)

    def child(self, name: str, new_run: Callable[[str], NewRun], scope: str = "") -> tuple[str, str | None]:
        """Store a child run that the body starts; return its id and its state, None when it is known.

        It is a step of its own, so that a replay costs nothing; its id is derived from this run's.
        """
        base = f"{scope}delay:{name}"
        key = self._keys.begin(base, keyed=False)
        try:
            known = self._history.find(key)
            if known is not None and known.finished:
                self._history.meet(known)
                return (known.output or b"").decode(), None
            child_id = self._ids.of(key)
            self._journal.may_go_on()
            new = new_run(child_id)
            entry = self._journal.entry(
                key, outcomes.OK, (_NO_DIGEST, name), tries=1, output=child_id.encode()
            )
            return child_id, self._start(entry, new)
        finally:
            self._keys.end(base)

    def _start(self, entry: StepWrite, new: NewRun) -> str | None:
        state: str | None = None

        def store() -> bool:
            nonlocal state
            stop, state = self._journal.runs.enqueue_child(self.claim.key, self.claim.fence, entry, new)
            return stop

        self._journal.store(store)
        return state

    def child_of_step(self, frame: context.Frame, name: str) -> str | None:
        """Return the id of a child run that a step's body starts: the same at every try of the step."""
        if frame.calls is None:
            return None  # a thread of its own within the step: nothing says in which order it calls
        frame.calls[name] = frame.calls.get(name, 0) + 1
        return self._ids.of(f"{frame.step}/delay:{occurrence(name, frame.calls[name])}")

    def linked_id(self, name: str) -> str:
        """Return the id of a run that this run's finish starts: the same in every attempt of a generation."""
        return self._ids.of(f"link:{name}")

    def sleep(self, frame: context.Frame, length: timedelta | None, until: datetime | None) -> None:
        """Wait for a time; the run leaves its worker meanwhile if that is long."""
        self._waiter.sleep(frame, length, until)

    def wait_for_signal(self, frame: context.Frame, name: str, timeout: timedelta | None, hint: Any) -> Any:
        """Wait for a signal, off the worker; return its payload."""
        return self._waiter.signal(frame, name, timeout, hint)

    def continue_as(self, frame: context.Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """Leave the body, for the run to begin anew with other arguments."""
        if frame.step is not None:
            message = (
                f"continue_as is called in the step {frame.step!r}: it ends the body, so it belongs there"
            )
            raise StepUsageError(message, step=frame.step)
        self._journal.may_go_on()
        self._history.check_complete()
        raise self._journal.leave(Continued(args, kwargs))

    def signal_token(self, frame: context.Frame, name: str, expires: timedelta) -> str:
        """Return a token for one signal to this run, the same at every replay."""
        if not timedelta(0) < expires <= context.LONGEST_WAIT:
            message = f"signal_token({name!r}, expires={expires!r}): it expires later, within a hundred years"
            raise StepUsageError(message)
        if frame.step is None:
            base = f"{frame.scope}signal_token:{name}"
            place, made = self._keys.begin(base, keyed=False), self._chance.now()
            self._keys.end(base)
        else:
            place, made = frame.step, self._chance.reckoned()
        return sign(Token(self.id, name, place, made + expires), self.settings.signal_secret)

    def children(self, frame: context.Frame, ask: Ask) -> list[tuple[bool, Any]]:
        """Start children and wait for them, off the worker; return for each success and value, or error."""
        return self._fan.await_all(frame, ask)

    def patched(self, change: str) -> bool:
        """Return whether the run takes the new branch of a change, and remember it."""
        taken = self._branches.get(change)
        if taken is None:
            taken = self._history.patched(change)
            if taken is None:
                self._journal.may_go_on()
                name = (_NO_DIGEST, change)
                self._journal.save(self._journal.entry(PATCH + change, outcomes.OK, name, tries=1))
                taken = True
            self._branches[change] = taken
        return taken

    def now(self) -> datetime:
        """Return the database's time, the same at every replay."""
        return self._chance.now()

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID, the same at every replay."""
        return self._chance.uuid4()

    def random(self) -> random_module.Random:
        """Return a generator that draws the same numbers at every replay."""
        return self._chance.generator

    def departed(self, suspended: Suspended) -> Suspended:
        """Return how the run has left, now that nothing of its body is executed any more."""
        if suspended.later is None:
            return suspended
        later, suspended.later = suspended.later, None
        # What it was to wait for may be there meanwhile: then it comes back at once.
        return later() or Suspended("released")

    def note(self, step: str, evidence: Callable[[], str]) -> None:
        """Keep evidence (JSON, asked for then) of a step's body, to be stored with that step's next write."""
        self._journal.note(step, evidence)

    def annotate(self, *, tags: dict[str, str] | None = None, progress: Any = None) -> None:
        """Store labels or progress, for people to see."""
        self._journal.annotate(tags, progress)

    def conclude(self) -> None:
        """Check, at the end of the body, that the lease is held and every stored step was met."""
        if self.leaving is not None:
            raise self.departed(self.leaving)
        if self.lost:
            raise LeaseLostError
        self._history.check_complete()
