"""Rehearsals: the body of a task replays what is stored of a run, up to where it would do something new.

Nothing is written or sent, and no step is executed: what is not in the history ends the rehearsal. But for a
new step in front of stored ones: the body goes on behind it, as far as it does not need to know what that
returns, for the stored ones may still come, or it may be one of them that was renamed.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from celery.exceptions import Ignore, Reject, Retry

from celery_durable import chains, context, envelope, outgoing, unknown
from celery_durable import checkpoint as outcomes
from celery_durable.attempt import WorkerSeam
from celery_durable.backend import durable_backend
from celery_durable.children import PLAIN
from celery_durable.exceptions import NondeterminismError, RunNotFoundError
from celery_durable.executor import Execution
from celery_durable.executor.keys import branch
from celery_durable.executor.performing import Call, Performer
from celery_durable.executor.rollbacks import is_compensation
from celery_durable.run import Claim
from celery_durable.seam import Suspended
from celery_durable.verdicts import BREAKS, CONTINUES, ENDS, Verdict, comes_from, is_told, of_error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from celery import Celery

    from celery_durable.backend import DurableBackend
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.executor.asks import Ask
    from celery_durable.executor.crew import Muster
    from celery_durable.executor.journal import Journal
    from celery_durable.steps import Step
    from celery_durable.store.views import Replayable
    from celery_durable.store.writes import Wait

_MOST_SKIPPED = 1000  # new steps; a body may be a loop without an end


class _Frontier(BaseException):
    """The body would do something that is not in the history."""


class _Nowhere:
    """A store for somebody who must not write.

    Arguments:
        refuse: called for whatever is wanted of it, with the key of a wait.
    """

    def __init__(self, refuse: Callable[[str | None], NoReturn]) -> None:
        self._refuse = refuse
        self.waits = _NoWaits(refuse)

    def __getattr__(self, name: str) -> Any:
        self._refuse(None)


class _NoWaits:
    """The same for waits, which are told by their key."""

    def __init__(self, refuse: Callable[[str | None], NoReturn]) -> None:
        self._refuse = refuse

    def begin(self, run: int, fence: uuid.UUID, wait: Wait, *_: Any) -> NoReturn:  # noqa: ARG002
        self._refuse(wait.key)

    leave = take_up = begin


class _Seam(WorkerSeam):
    """A worker's seam that remembers which errors came out of the history, and where the body left that.

    Attributes:
        stored: errors that are stored.
        problems: how the body left its history.
        listens: whether what the body does now counts: not once it has come to the end of its history.
    """

    def __init__(self, backend: DurableBackend) -> None:
        super().__init__(backend)
        self.stored: list[BaseException] = []
        self.problems: list[str] = []
        self.listens: Callable[[], bool] = lambda: True

    def load_error(self, content_type: str | None, data: bytes) -> BaseException:
        error = super().load_error(content_type, data)
        self.stored.append(error)
        return error

    def warn(self, message: str) -> None:
        if self.listens():
            self.problems.append(message)
        raise NondeterminismError(message)


class _Spectator(Performer):
    """Performs no step.

    Arguments:
        instead: called for a step that would be performed.
    """

    def __init__(
        self, journal: Journal, settings: Settings, seam: _Seam, instead: Callable[[Any, Call, Any], Any]
    ) -> None:
        super().__init__(journal, settings, seam)
        self._instead = instead

    def perform(self, frame: context.Frame, step: Any, call: Call, known: Any) -> Any:  # noqa: ARG002
        return self._instead(step, call, known)

    def tries(self, step: Any, call: Call, known: Any, body: Any) -> Generator[Ask, Any, Any]:  # noqa: ARG002
        yield from ()
        return self._instead(step, call, known)


class Rehearsal(Execution):
    """An attempt that replays and does nothing else.

    Attributes:
        continues: whether it came to something that is not stored.
        at: the key of that, if it is a step or a wait.
        skipped: how many new steps were left out.
    """

    rehearsed = True

    def __init__(self, claim: Claim, history: list[Checkpoint], settings: Settings, seam: _Seam) -> None:
        nowhere: Any = _Nowhere(self._stop)
        super().__init__(claim, history, runs=nowhere, settings=settings, seam=seam)
        self._performer = _Spectator(self._journal, settings, seam, self._instead)
        self.continues = False
        self.at: str | None = None
        self._problems = seam.problems
        self._stopped: set[str] = set()  # branches
        self._tasks: Muster | None = None
        self.skipped = 0
        seam.listens = lambda: self._branch not in self._stopped and not self._is_closing

    def annotate(self, *, tags: dict[str, str] | None = None, progress: Any = None) -> None:
        """Labels and progress are for people who look at the run itself."""

    def child(self, name: str, _new_run: Any, scope: str = "") -> tuple[str, str | None]:
        """Return a child that is stored; a new one is not even prepared."""
        return super().child(name, lambda _: self._stop(f"{scope}delay:{name}"), scope)

    def muster(self) -> Muster:
        """Return what keeps the tasks of an `async def` body together, and says which of them are over."""
        self._tasks = super().muster()
        return self._tasks

    def _digest(
        self, step: Step[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, str]:
        return (
            unknown.ANY_ARGUMENTS if unknown.inside((args, kwargs)) else super()._digest(step, args, kwargs)
        )

    def _instead(self, step: Step[Any, Any], call: Call, known: Checkpoint | None) -> Any:
        """Return what stands for the value of a new step, if more is to be learned behind it."""
        self._comes_to(call.key)
        self.skipped += 1
        may_be_none = type(None) in get_args(step.returns)
        begun = known is not None and known.outcome != outcomes.DISCARDED
        if begun or may_be_none or self.skipped > _MOST_SKIPPED or not self.ahead:
            self._stop(call.key)
        return None if step.returns in (None, type(None)) else unknown.Unknown(self._stop)

    def _comes_to(self, key: str | None) -> None:
        if not self.continues:
            self.continues, self.at = True, key

    def _stop(self, at: str | None = None) -> NoReturn:
        self._comes_to(at)
        if self._branch not in self._stopped and not self._is_closing:  # a body may catch all and go on
            self._stopped.add(self._branch)
            missed = () if at is None else self._history.passed_over(at, partial(self._is_over, branch(at)))
            if missed:
                named = ", ".join(repr(key) for key in missed[:5])
                self._problems.append(
                    f"The body comes to {at!r} without {named}, which its history holds in front of it: "
                    f"its code changed, or it depends on something that is not a step"
                )
        raise _Frontier

    @property
    def _branch(self) -> str:
        frame = context.here()
        return "" if frame is None else branch(frame.scope)

    @property
    def _is_closing(self) -> bool:
        return self._tasks is not None and self._tasks.closing

    def _is_over(self, here: str, other: str) -> bool:
        """Whether another branch does nothing any more, seen from one that waits as it did before.

        Its task has ended; or it was not started, in front of this wait, by who waits here or has ended.
        """
        begun, ended = (self._tasks.begun, self._tasks.ended) if self._tasks else (set(), set())
        if other in begun or not other:
            return other in ended
        starter = other[: other.rindex("[")]
        return starter == here or self._is_over(here, starter)


def rehearse(app: Celery, run_id: str) -> Verdict:
    """Replay what is stored of a run against the code at hand.

    Raises `RunNotFoundError` for an id that no run has.
    """
    store = durable_backend(app).store
    found = store.inspection.replayable(run_id)
    if found is None:
        message = f"No run has the id {run_id!r}"
        raise RunNotFoundError(message, run_id=run_id)
    return _verdict(app, *found)


def rehearse_all(app: Celery, ids: Sequence[str]) -> Iterator[Verdict]:
    """Replay runs one after the other; those that are deleted meanwhile are left out."""
    for run_id in ids:
        found = durable_backend(app).store.inspection.replayable(run_id)
        if found is not None:
            yield _verdict(app, *found)


def _verdict(app: Celery, run: Replayable, history: Sequence[Checkpoint]) -> Verdict:
    verdict = Verdict(run.id, run.task, run.version, BREAKS)
    if run.task == PLAIN:  # no steps, and a function that is not to be called here
        return replace(verdict, outcome=CONTINUES)
    task: Any = app.tasks.get(run.task)
    if task is None or not getattr(task, "durable", False):
        return replace(verdict, problem=f"There is no durable task {run.task!r} in this code")
    backend = durable_backend(app)
    seam, settings = _Seam(backend), replace(backend.store.settings, nondeterminism="warn")
    steps = [step for step in history if not is_compensation(step.key)]  # nothing of the body
    execution = Rehearsal(_claim(run), steps, settings, seam)

    def as_it_did(error: BaseException) -> bool:
        if comes_from(error, seam.stored):
            return True
        return not execution.ahead and (run.ending is not None or is_told(error, run.error))

    found = _outcome(lambda: _replay(app, task, run, execution), seam, as_it_did)
    if seam.problems:
        first = (
            f"\n  first it would execute {execution.at!r}, which is not stored" if execution.skipped else ""
        )
        return replace(verdict, problem=seam.problems[0] + first)
    if execution.continues:
        return replace(verdict, outcome=CONTINUES, at=execution.at, ahead=execution.ahead)
    return replace(verdict, **found)


def _outcome(
    play: Callable[[], None], seam: _Seam, as_it_did: Callable[[BaseException], bool]
) -> dict[str, Any]:
    try:
        play()
    except NondeterminismError as error:
        if seam.listens():
            seam.problems.append(str(error))
        return {"problem": str(error)}
    except (Retry, Ignore, Reject, Suspended):  # also who goes on as its own successor
        return {"outcome": ENDS}
    except BaseException as error:  # noqa: BLE001  (whatever the code at hand raises is the verdict)
        return of_error(error, as_it_did=as_it_did(error))
    return {"outcome": ENDS}


def _replay(app: Celery, task: Any, run: Replayable, execution: Rehearsal) -> None:
    args, kwargs, embed = envelope.body_of(run.message, bytes(run.body), app.conf.accept_content)
    headers = envelope.headers_of(run.message)
    embed = {**embed, "chain": chains.rest(app, embed.get("chain"))}
    given = {**headers, **embed, "id": run.id, "retries": run.retries, "args": args, "kwargs": kwargs}
    task.push_request(**{**given, "called_directly": False, "is_eager": False, "delivery_info": {}})
    try:
        with outgoing.collecting(run.id, everything_of=app), context.activate(execution):
            task.unretried(*args, **kwargs)
            execution.conclude()
    finally:
        task.pop_request()


def _claim(run: Replayable) -> Claim:
    return Claim(
        key=run.key,
        id=run.id,
        task=run.task,
        fence=uuid.uuid4(),  # known to no row: whatever would be written with it changes nothing
        attempt=run.attempt + 1,
        generation=run.generation,
        retries=run.retries,
        recoveries=run.recoveries,
        seed=run.seed,
        cancel_requested=False,
        claimed_at=run.now,
        revision=run.revision,
        replacements=run.replacements,
        body=None,
        message=None,
    )
