"""Why a run does or does not move: one sentence, what it rests on, and what to do; from facts alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from shlex import quote
from typing import TYPE_CHECKING, Literal

from celery_durable.operations.wording import relative, span, summary, until
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from celery_durable.operations.compensations import RollbackView
    from celery_durable.store.views import RunSummary, StepView

Tone = Literal["good", "busy", "calm", "warning", "bad"]

# A healthy keeper gets to what is due within this many seconds.
_PATIENCE = 10.0
_OFTEN = 3  # failures of a step that are worth the headline
_START_A_WORKER = "Start a worker: celery -A <app> worker"
_START_A_KEEPER = "Start a worker (without durable_keeper = False), or: celery -A <app> durable keeper"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides whether a run can move.

    Attributes:
        run: the run, as it stood when it was read.
        steps: its stored steps.
        lease: seconds without a heartbeat after which a worker counts as dead.
        silent: seconds since the last heartbeat of the worker that has the run; None if there is none.
        workers: how many worker processes are alive.
        led_for: seconds for which the leader's lease still runs; None when nobody has ever led.
        ahead: how many older runs are pending in the same queue; 1,000 stands for as many or more.
        queues: queues that some worker consumes; None when nobody knows.
        max_retries: how often the task is retried; None when unknown or for ever.
        children: how many children have ended, and how many there are.
        unfinished: some of those that have not, in words.
        of_its_version: how many live workers execute only runs of this run's version.
        slot: the key of the runs among which only so many are executed at a time.
        slot_limit: how many; None when only their starts are limited.
        slot_taken: how many are executed now.
        rollback: how the run takes back what it has done, if it does.
    """

    run: RunSummary
    steps: Sequence[StepView] = ()
    lease: float = 30.0
    silent: float | None = None
    workers: int = 0
    led_for: float | None = None
    ahead: int = 0
    queues: frozenset[str] | None = None
    max_retries: int | None = None
    children: tuple[int, int] = (0, 0)
    unfinished: Sequence[str] = ()
    of_its_version: int = 0
    slot: str | None = None
    slot_limit: int | None = None
    slot_taken: int = 0
    rollback: RollbackView | None = None

    @property
    def alive(self) -> bool:
        """Whether the worker that has the run, if one has, keeps its lease."""
        return not self.run.orphaned and self.silent is not None and self.silent <= self.lease

    @property
    def led(self) -> bool:
        """Whether some keeper leads."""
        return self.led_for is not None and self.led_for > 0


@dataclass(frozen=True)
class Diagnosis:
    """Why a run does or does not move.

    Attributes:
        tone: `good` (succeeded), `busy` (executing), `calm` (waits as it should), `warning`, `bad` (stuck, or
            failed).
        sentence: the reason.
        because: facts it rests on.
        advice: what to do; None when there is nothing to do.
        over: whether the run is.
    """

    tone: Tone
    sentence: str
    because: tuple[str, ...] = field(default=())
    advice: str | None = None
    over: bool = False

    @property
    def stuck(self) -> bool:
        """Whether something should have moved the run on; one that is over moves no more."""
        return self.tone == "bad" and not self.over


def diagnose(facts: Facts, zone: tzinfo | None = None) -> Diagnosis:
    """Return why a run does or does not move; `zone` is that of the moments it names."""
    state = facts.run.stored_state
    if state in (RunState.RUNNING, RunState.CANCELLING):
        return _executing(facts, zone)
    if state is RunState.PENDING:
        return _pending(facts, zone)
    if state is RunState.WAITING:
        return _waiting(facts, zone)
    return replace(_final(facts, zone), over=True)


def _executing(facts: Facts, zone: tzinfo | None) -> Diagnosis:
    run, silent = facts.run, facts.silent
    words = summary(run, zone)
    if run.hostname is None or (run.state is RunState.CANCELLING and not run.orphaned and silent is None):
        return Diagnosis("busy", _sentence(words))
    if run.orphaned or silent is None:
        return _orphaned(facts, f"Its worker {run.hostname} is gone")
    if silent > facts.lease:
        return _orphaned(
            facts,
            f"Its worker {run.hostname} has been silent for {span(silent)}, longer than its lease of "
            f"{span(facts.lease)}",
        )
    if silent > facts.lease / 2:
        left = span(facts.lease - silent)
        return Diagnosis(
            "warning",
            f"Its worker {run.hostname} has been silent for {span(silent)}",
            (f"another worker gets the run in {left} unless it speaks again",),
        )
    trying = _trying(facts)
    if trying is not None and trying.tries >= _OFTEN:
        sentence = f"Step {trying.key} has failed {trying.tries} times and is tried again"
        return Diagnosis("warning", sentence, (words, f"the last error is {trying.error}"))
    return Diagnosis("busy", _sentence(words), tuple(_progress(facts)))


def _trying(facts: Facts) -> StepView | None:
    """Return the step that is tried again, if there is one."""
    return next((step for step in reversed(facts.steps) if step.outcome == "trying"), None)


def _orphaned(facts: Facts, what: str) -> Diagnosis:
    if facts.led and facts.workers:
        return Diagnosis("warning", f"{what}: the leader hands the run to another one", (_alive(facts),))
    if facts.workers:
        return Diagnosis("bad", f"{what}, and nobody leads, so nobody hands the run on", (), _START_A_KEEPER)
    return Diagnosis("bad", f"{what}, and no other is alive to go on with it", (), _START_A_WORKER)


def _progress(facts: Facts) -> list[str]:
    run = facts.run
    step = _trying(facts)
    if step is not None:
        return [f"step {step.key} failed {_times(step.tries)} and is tried again: {step.error}"]
    done = [step for step in facts.steps if step.outcome == "ok"]
    if done:
        latest = max(done, key=lambda step: step.stored_at)
        return [f"the last finished step is {latest.key}, {relative(latest.stored_at, run.now)}"]
    return ["no step has finished yet"]


def _pending(facts: Facts, zone: tzinfo | None) -> Diagnosis:
    run = facts.run
    words = _sentence(summary(run, zone))
    if not facts.workers:
        return Diagnosis("bad", "No worker is alive to take this run", (words,), _START_A_WORKER)
    if facts.queues is not None and run.queue not in facts.queues:
        heard = ", ".join(sorted(facts.queues)) or "none"
        return Diagnosis(
            "bad",
            f"No worker listens to its queue {run.queue}",
            (f"queues that are listened to: {heard}",),
            f"Start one that does: celery -A <app> worker -Q {quote(run.queue)}",
        )
    if run.published_at is None:
        return _unpublished(facts, words)
    if facts.ahead:
        count = "1,000 runs or more are" if facts.ahead >= 1000 else _runs(facts.ahead)  # noqa: PLR2004
        return Diagnosis("calm", f"Waits for its turn: {count} in front of it in {run.queue}", (words,))
    return Diagnosis("calm", words, (_alive(facts),))


def _unpublished(facts: Facts, words: str) -> Diagnosis:
    run = facts.run
    if run.due is None or (run.now - run.due).total_seconds() <= _PATIENCE:
        return Diagnosis("calm", words)
    if not facts.led:
        return Diagnosis("bad", "Its message was never sent, and nobody leads", (), _START_A_KEEPER)
    return Diagnosis(
        "warning",
        f"Its message should have been sent {relative(run.due, run.now)}",
        (),
        "Is the broker up? The keeper sends it as soon as it is",
    )


def _waiting(facts: Facts, zone: tzinfo | None) -> Diagnosis:
    run = facts.run
    words = _sentence(summary(run, zone, max_retries=facts.max_retries))
    late = 0.0 if run.due is None else (run.now - run.due).total_seconds()
    if late > _PATIENCE:
        if not facts.led:
            return Diagnosis(
                "bad", f"It was due {span(late)} ago, and nobody leads to wake it", (words,), _START_A_KEEPER
            )
        return Diagnosis("warning", f"It was due {span(late)} ago and has not been woken yet", (words,))
    trying = _trying(facts)
    if run.reason == "retry" and trying is not None:
        sentence = (
            f"Step {trying.key} failed {_times(trying.tries)}, waits for its next try{until(run, zone)}"
        )
        alive = () if facts.workers else ("no worker is alive to go on with it then",)
        advice = None if facts.workers else _START_A_WORKER
        return Diagnosis("warning", sentence, (f"the last error is {trying.error}", *alive), advice)
    if run.reason == "version" and not facts.of_its_version:
        return Diagnosis(
            "bad",
            f"No live worker has the code of its version {run.version}",
            (words,),
            f"Start one with durable_version = {run.version!r}, or lift durable_version_policy",
        )
    because: list[str] = []
    if run.reason == "children" and facts.children[1]:
        done, all_of_them = facts.children
        because.append(f"{done:,} of {all_of_them:,} children have ended")
        because += [f"not yet {', '.join(facts.unfinished)}"] if facts.unfinished else []
    if run.reason == "slot" and facts.slot is not None:
        taken = (
            f"{facts.slot_taken} of {facts.slot_limit} are taken"
            if facts.slot_limit
            else "its starts are limited"
        )
        because.append(f"{taken} of the concurrency key {facts.slot!r}")
    if not facts.workers:
        return Diagnosis("warning", words, ("no worker is alive to go on with it then",), _START_A_WORKER)
    tone: Tone = "warning" if run.reason == "retry" else "calm"
    return Diagnosis(tone, words, tuple(because))


def _final(facts: Facts, zone: tzinfo | None) -> Diagnosis:
    run = facts.run
    words = summary(run, zone)
    if run.state is RunState.SUCCEEDED:
        return Diagnosis("good", f"Succeeded {words}")
    if run.state is RunState.CANCELLED:
        return Diagnosis("calm", f"Cancelled {words}")
    if run.reason == "rollback" and facts.rollback is not None and run.finished_at is not None:
        return _not_taken_back(facts, facts.rollback, relative(run.finished_at, run.now))
    failed = [step for step in facts.steps if step.outcome == "error"]
    because = (f"step {failed[-1].key} failed after {_times(failed[-1].tries, 'tries')}",) if failed else ()
    if run.ending is not None and run.reason != "rollback":
        advice = "What it had done is taken back: once the cause is mended, start another run, or fork it"
    elif run.reason == "exhausted":
        advice = "Look for what kills its worker, such as memory; then resume it"
    else:
        advice = "Resume it once the cause is mended: finished steps stay"
    return Diagnosis("bad", f"Failed {words}", because, advice)


def _not_taken_back(facts: Facts, rollback: RollbackView, ended: str) -> Diagnosis:
    """Return why a run whose compensation has failed is where it is."""
    keys = {one.key for one in rollback.compensations}
    first = [step for step in facts.steps if step.outcome == "error" and step.key not in keys]
    began = (f"it began with step {first[-1].key}: {first[-1].error}",) if first else ()
    if not rollback.known:
        why = f": {facts.run.error}" if facts.run.error else ""
        return Diagnosis(
            "bad",
            f"Failed {ended}, and what it had to take back could not be found out{why}",
            (*began, rollback.sentence),
            "Mend the code, or start the version it was written for, then resume the run",
        )
    failed = next((one for one in rollback.compensations if one.outcome == "failed"), None)
    what = "not all of it was taken back" if failed is None else f"{failed.name} could not take it back"
    why = f": {failed.error}" if failed is not None and failed.error else ""
    return Diagnosis(
        "bad",
        f"Failed {ended}, and {what}{why}",
        (*began, rollback.sentence),
        "Mend what keeps the compensation from being made, then resume the run",
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _alive(facts: Facts) -> str:
    return "one worker is alive" if facts.workers == 1 else f"{facts.workers} workers are alive"


def _runs(count: int) -> str:
    return "one run is" if count == 1 else f"{count:,} runs are"


def _times(count: int, of: str = "times") -> str:
    if of == "tries":
        return "one try" if count == 1 else f"{count} tries"
    return "once" if count == 1 else f"{count} times"
