"""What the ledger proves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from example_project.ledger import Entry


@dataclass
class StepHistory:
    """The executions of one step: which workers started its body and which finished it, in order."""

    step: str
    started: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    def seconds(self, now: float) -> float:
        """How long the last execution took, or has taken until now.

        Args:
            now: seconds since 1970.
        """
        return (self.ended if self.finished else now) - self.began


def histories(entries: Iterable[Entry]) -> list[StepHistory]:
    """Group a run's ledger lines by step, in the order in which the steps were first started."""
    steps: dict[str, StepHistory] = {}
    for entry in entries:
        history = steps.setdefault(entry.step, StepHistory(entry.step))
        if entry.event == "start":
            history.started.append(entry.worker)
            history.began = entry.time
        elif entry.event == "finish":
            history.finished.append(entry.worker)
            history.ended = entry.time
    return list(steps.values())


def contradictions(steps: Sequence[StepHistory], interrupted: str, killed: str) -> list[str]:
    """Why the ledger does not prove that the run went on where it was stopped; empty if it does.

    Args:
        steps: what was executed.
        interrupted: key of the step in whose middle the worker was killed.
        killed: name of that worker.
    """
    found = [problem for history in steps for problem in _executions(history, interrupted)]
    names = [history.step for history in steps]
    if interrupted not in names:
        return [*found, f"{interrupted}, the interrupted step, is not in the ledger"]
    position = names.index(interrupted)
    before, again, after = steps[:position], steps[position], steps[position + 1 :]
    if not before or not after:
        found.append("the worker was not killed between its first and its last step")
    if again.started[:1] != [killed] or killed in again.finished:
        found.append(f"{killed} was not killed in the middle of {interrupted}")
    found += [
        f"{step.step} ran before the kill but not on {killed}" for step in before if step.started != [killed]
    ]
    found += [f"{step.step} ran on {killed} after it was killed" for step in after if killed in step.started]
    return found


def _executions(history: StepHistory, interrupted: str) -> list[str]:
    expected = 2 if history.step == interrupted else 1
    found = []
    if len(history.started) != expected:
        found.append(f"{history.step} was started {len(history.started)} times, not {expected}")
    if len(history.finished) != 1:
        found.append(f"{history.step} was finished {len(history.finished)} times, not once")
    return found
