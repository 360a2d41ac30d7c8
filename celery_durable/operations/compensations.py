"""What a run that ended badly has taken back, in which order, and what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from celery_durable import checkpoint as outcomes
from celery_durable.executor.rollbacks import PREFIX

if TYPE_CHECKING:
    from datetime import datetime

    from celery_durable.store.views import RunView, StepView

Made = Literal["made", "trying", "failed", "left"]


@dataclass(frozen=True, kw_only=True)
class CompensationView:
    """One compensation.

    Attributes:
        key: of its step.
        name: of its function, with a number if it was registered several times.
        outcome: `made`, `trying`, `failed` for good, or `left`: to come, or never made if the run is over.
        arguments: what it was called with, as it is shown; empty before it is called.
        error: what its last try failed with.
        seconds, at: how long its last try took, and when it was stored; None before it is called.
    """

    key: str
    name: str
    outcome: Made
    arguments: str = ""
    tries: int = 0
    error: str | None = None
    seconds: float | None = None
    at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class RollbackView:
    """How a run takes back what it has done.

    Attributes:
        ends_as: the state that it ends in when all is taken back.
        over: whether it is over, well or not.
        known: whether its compensations are known; if not, a worker replays the run first to find out.
        compensations: the last registered one first, as they are made.
    """

    ends_as: str
    over: bool
    known: bool
    compensations: tuple[CompensationView, ...]

    @property
    def made(self) -> int:
        """How many are done."""
        return sum(one.outcome == "made" for one in self.compensations)

    @property
    def sentence(self) -> str:
        """How far it has come."""
        if not self.known and self.over:
            return "What it has registered could not be found out, and stands. A resume replays it again"
        if not self.known:
            return "What it has registered is not known yet: a worker replays it first to find out"
        count, failed = (
            len(self.compensations),
            [one for one in self.compensations if one.outcome == "failed"],
        )
        if self.made == count:
            return "The one compensation is made" if count == 1 else f"All {count} compensations are made"
        words = f"{self.made} of {count} compensations {'is' if self.made == 1 else 'are'} made"
        if failed and self.over:
            left = count - self.made - len(failed)
            rest = f", {left} before it {'was' if left == 1 else 'were'} not tried" if left else ""
            return f"{words}; {failed[0].name} failed for good{rest}. A resume tries what is left"
        return words if self.over else f"{words} so far"


def rollback_of(run: RunView) -> RollbackView | None:
    """Return how a run takes back what it has done; None for one that does not."""
    if run.ending is None or (run.rollbacks is not None and not run.rollbacks):
        return None
    steps = {step.key: step for step in run.steps}
    keys = list(reversed(run.rollbacks or ()))
    return RollbackView(
        ends_as=run.ending,
        over=run.state.final,
        known=run.rollbacks is not None,
        compensations=tuple(_compensation(key, steps.get(key)) for key in keys),
    )


_MADE: dict[str, Made] = {outcomes.OK: "made", outcomes.TRYING: "trying", outcomes.ERROR: "failed"}


def _compensation(key: str, step: StepView | None) -> CompensationView:
    name = key.replace(PREFIX, "", 1)
    if step is None:
        return CompensationView(key=key, name=name, outcome="left")
    return CompensationView(
        key=key,
        name=name,
        outcome=_MADE.get(step.outcome, "left"),
        arguments=step.arguments,
        tries=step.tries,
        error=step.error,
        seconds=step.seconds,
        at=step.stored_at,
    )
