"""Rehearsals: the body of a task replays what is stored of a run, up to where it would do something new.

Nothing is written or sent, and no step is executed: what is not in the history ends the rehearsal.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from celery.exceptions import Ignore, Reject, Retry

from celery_durable import chains, context, envelope, outgoing, texts
from celery_durable.attempt import WorkerSeam
from celery_durable.backend import durable_backend
from celery_durable.children import PLAIN
from celery_durable.exceptions import NondeterminismError, RunNotFoundError
from celery_durable.executor import Execution
from celery_durable.executor.performing import Call, Performer
from celery_durable.run import Claim
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from celery import Celery

    from celery_durable.backend import DurableBackend
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.config import Settings
    from celery_durable.executor.journal import Journal
    from celery_durable.store.views import Replayable
    from celery_durable.store.writes import Wait

CONTINUES, ENDS, FAILS, BREAKS = "continues", "ends", "fails", "breaks"


@dataclass(frozen=True)
class Verdict:
    """What the code at hand makes of a stored run.

    Attributes:
        outcome: `continues` with something that is not stored yet, `ends` as the body returns or leaves,
            `fails` with an error that is stored of one of its steps, or `breaks`.
        at: the key of the step or wait that it would continue with, None where it does not get that far.
        problem: why it breaks, with what is stored and what was met.
        ahead: stored steps behind the place where it continues: a new step stands in front of them.
    """

    id: str
    task: str
    version: str | None
    outcome: str
    at: str | None = None
    problem: str | None = None
    ahead: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run goes on, or ends, as its history allows."""
        return self.outcome != BREAKS


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
    """A worker's seam that remembers which errors came out of the history."""

    def __init__(self, backend: DurableBackend) -> None:
        super().__init__(backend)
        self.stored: list[BaseException] = []

    def load_error(self, content_type: str | None, data: bytes) -> BaseException:
        error = super().load_error(content_type, data)
        self.stored.append(error)
        return error

    def warn(self, message: str) -> None:
        raise NondeterminismError(message)


class _Spectator(Performer):
    """Performs no step.

    Arguments:
        stop: called with the key of a step that would be performed.
    """

    def __init__(
        self, journal: Journal, settings: Settings, seam: _Seam, stop: Callable[[str], NoReturn]
    ) -> None:
        super().__init__(journal, settings, seam)
        self._stop = stop

    def perform(self, frame: context.Frame, step: Any, call: Call, known: Any) -> Any:  # noqa: ARG002
        self._stop(call.key)

    def tries(self, step: Any, call: Call, known: Any, body: Any) -> Any:  # noqa: ARG002
        self._stop(call.key)


class Rehearsal(Execution):
    """An attempt that replays and does nothing else.

    Attributes:
        stopped: whether it came to something that is not stored.
        at: the key of that, if it is a step or a wait.
    """

    rehearsed = True

    def __init__(self, claim: Claim, history: list[Checkpoint], settings: Settings, seam: _Seam) -> None:
        nowhere: Any = _Nowhere(self._stop)
        super().__init__(claim, history, runs=nowhere, settings=settings, seam=seam)
        self._performer = _Spectator(self._journal, settings, seam, self._stop)
        self.stopped = False
        self.at: str | None = None

    def annotate(self, *, tags: dict[str, str] | None = None, progress: Any = None) -> None:
        """Labels and progress are for people who look at the run itself."""

    def child(self, name: str, _new_run: Any, scope: str = "") -> tuple[str, str | None]:
        """Return a child that is stored; a new one is not even prepared."""
        return super().child(name, lambda _: self._stop(f"{scope}delay:{name}"), scope)

    @property
    def problem(self) -> str | None:
        """Why it cannot go on where it stopped: stored steps in front of that wait were left out."""
        missed = () if self.at is None else self._history.passed_over(self.at)
        if not missed:
            return None
        named = ", ".join(repr(key) for key in missed[:5])
        return (
            f"The body comes to {self.at!r} without {named}, which its history holds in front of it: "
            f"its code changed, or it depends on something that is not a step"
        )

    def _stop(self, at: str | None = None) -> NoReturn:
        if not self.stopped:  # a body may catch everything and go on
            self.stopped, self.at = True, at
        raise _Frontier


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
    seam, settings = _Seam(backend), replace(backend.store.settings, nondeterminism="error")
    execution = Rehearsal(_claim(run), list(history), settings, seam)
    found = _outcome(lambda: _replay(app, task, run, execution), seam)
    if execution.stopped and execution.problem is not None:
        return replace(verdict, problem=execution.problem)
    if execution.stopped:
        return replace(verdict, outcome=CONTINUES, at=execution.at, ahead=execution.ahead)
    return replace(verdict, **found)


def _outcome(play: Callable[[], None], seam: _Seam) -> dict[str, Any]:
    try:
        play()
    except NondeterminismError as error:
        return {"problem": str(error)}
    except (Retry, Ignore, Reject, Suspended):  # also who goes on as its own successor
        return {"outcome": ENDS}
    except Exception as error:  # noqa: BLE001  (whatever the code at hand raises is the verdict)
        if _comes_from(error, seam.stored):
            return {"outcome": FAILS, "problem": texts.line(error)}
        return {"problem": f"The body raises {texts.line(error)}\n{texts.trace(error)}"}
    except BaseException as error:  # noqa: BLE001
        return {"problem": f"The body raises {texts.line(error)}"}
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


def _comes_from(error: BaseException | None, stored: list[BaseException]) -> bool:
    while error is not None:
        if any(error is one for one in stored):
            return True
        error = error.__cause__ or error.__context__
    return False
