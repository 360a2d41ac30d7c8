"""What became of each run that an operation was asked to change."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable.exceptions import RunNotFoundError, RunStateError
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.exceptions import DurableError
    from celery_durable.store.views import Change

AT_ONCE = 500
"""Runs that one transaction changes at most."""


@dataclass(frozen=True)
class Outcome:
    """What an operation made of one run.

    Attributes:
        before: the state in which it was found, None for an unknown id.
        state: the state it is in now. After a cancel `running` means: asked to stop, at its next step.
        changed: whether this operation changed anything; a cancel asked for before changes nothing again.
        children: how many failed and cancelled children a resume starts again, when the run waits for them.
        published: False when the broker did not take the message of a resumed run; the keeper sends it later.
        error: why the run was left alone, or None.
    """

    id: str
    before: RunState | None
    state: RunState | None
    changed: bool
    published: bool = True
    error: DurableError | None = None
    children: int = 0


def outcomes_of(
    ids: Sequence[str],
    operation: Callable[[Sequence[str]], Sequence[Change]],
    refusal: Callable[[Change], RunStateError | None],
    late: set[str] | frozenset[str] = frozenset(),
) -> Sequence[Outcome]:
    """Do `operation` on runs, batch by batch; return an outcome for each id, in their order.

    Raises `TypeError` or `ValueError`, and does nothing, for what can be no run's id.
    """
    distinct = tuple(dict.fromkeys(map(checked_id, ids)))
    known: dict[str, Outcome] = {}
    for start in range(0, len(distinct), AT_ONCE):
        for change in operation(distinct[start : start + AT_ONCE]):
            known[change.id] = Outcome(
                change.id,
                change.before,
                change.state,
                change.changed,
                published=change.id not in late,
                error=None if change.changed else refusal(change),
                children=change.children,
            )
    return [
        known.get(run_id) or Outcome(run_id, None, None, changed=False, error=unknown(run_id))
        for run_id in distinct
    ]


def checked_id(run_id: str) -> str:
    """Return a run's id; raise `TypeError` or `ValueError` for what can be no run's."""
    told: object = run_id
    if not isinstance(told, str):
        hint = "; its id does (`result.id`)" if isinstance(getattr(told, "id", None), str) else ""
        message = f"{told!r} is no id of a run, which is a text{hint}"
        raise TypeError(message)
    if "\0" in told:
        message = f"{told!r} is no id of a run: it has a NUL character in it"
        raise ValueError(message)
    return run_id


def only(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the one outcome there is; raise what kept it from changing anything."""
    if outcomes[0].error is not None:
        raise outcomes[0].error
    return outcomes[0]


def unknown(run_id: str) -> RunNotFoundError:
    """Return the error for an id that no run has."""
    message = (
        f"No run has the id {run_id!r}: it was never a durable task's, or it was deleted after "
        f"`durable_retention`. `celery -A <app> durable runs` lists those there are"
    )
    return RunNotFoundError(message, run_id=run_id)


def not_cancelled(change: Change) -> RunStateError | None:
    """Return why a run could not be cancelled, None if it was asked before."""
    if change.state in (RunState.RUNNING, RunState.CANCELLING):
        return None  # asked for before
    message = f"The run {change.id} is over, it has {change.state}: there is nothing left to cancel"
    if change.state is RunState.CANCELLED:
        message = f"The run {change.id} is cancelled already"
    return RunStateError(message, run_id=change.id, state=str(change.state))


_WHY_NOT_RESUMED = {
    RunState.SUCCEEDED: "call the task again for another run",
    RunState.PENDING: "it waits for a worker to take it",
    RunState.RUNNING: "it is being executed; cancel it first if it hangs",
    RunState.WAITING: "it comes back by itself; `durable show` says when",
    RunState.CANCELLING: "it takes back what it has done; look again when that is over",
    RunState.FAILED: "what it had done is taken back; start another run, or fork it",
    RunState.CANCELLED: "what it had done is taken back, or cleaned up; start another run, or fork it",
}


def not_resumed(change: Change) -> RunStateError:
    """Return why a run could not be resumed."""
    if change.stopping:
        message = (
            f"The run {change.id} is cancelled, and children of it are still coming to their end: "
            f"resume it when they have, and they are resumed with it"
        )
        return RunStateError(message, run_id=change.id, state=str(change.state))
    if change.other is not None and change.state in (RunState.FAILED, RunState.CANCELLED):
        message = (
            f"The run {change.id} is a singleton, and {change.other}, which has its key, is not over: "
            f"cancel that one first, or wait for its end"
        )
        return RunStateError(message, run_id=change.id, state=str(change.state))
    hint = _WHY_NOT_RESUMED.get(change.state or RunState.PENDING, "look again")
    which = "Only failed and cancelled runs can be resumed. "
    if change.state in (RunState.FAILED, RunState.CANCELLED):
        which = ""
    message = f"{which}The run {change.id} is {change.state}: {hint}"
    return RunStateError(message, run_id=change.id, state=str(change.state))


def this_user() -> str:
    """Return the name of the operating system's user this process runs as."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has a number only
        return f"uid {os.getuid()}"


def not_retried(change: Change) -> RunStateError:
    """Return why a run was not tried again at once."""
    message = f"Only runs that wait for a retry can be retried now. The run {change.id} is {change.state}"
    if change.state in (RunState.FAILED, RunState.CANCELLED):
        message += ": resume it"
    return RunStateError(message, run_id=change.id, state=str(change.state))
