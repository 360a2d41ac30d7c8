"""Why something was tried so often: errors counted, those together that differ in numbers alone."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from celery_durable.store.views import AttemptView, StepView

Reasons = list[tuple[int, str]]
"""How often for each reason, the most frequent first."""

FAILED = ("trying", "error", "discarded")
"""Outcomes of a step whose last try failed."""

_WELL = (None, "succeeded", "cancelled", "suspended")  # nothing went wrong: no reason to be tried again
_ENDINGS = {
    "lost": "it lost its worker",
    "released": "its worker was shut down",
    "replaced": "it was replaced",
}
# What tells one failure from another of the same kind: times, ports, ids, addresses.
_NUMBERS = re.compile(
    r"0x[0-9a-f]+|\b(?=[0-9a-f-]*\d)[0-9a-f][0-9a-f-]{7,}\b|\d+(?:[.,:]\d+)*", re.IGNORECASE
)


def why_so_many_attempts(attempts: Sequence[AttemptView]) -> Reasons:
    """Return why a run was attempted again."""
    return counted(_reason(attempt) for attempt in attempts if attempt.outcome not in _WELL)


@dataclass(frozen=True)
class Failures:
    """The failed tries of one step.

    Attributes:
        step: its key.
        count: how many there were.
        reasons: why those failed whose errors are kept, which are the last fifty or so.
    """

    step: str
    count: int
    reasons: Reasons


def why_so_many_tries(steps: Iterable[StepView], *, least: int = 2) -> list[Failures]:
    """Return the steps that were tried again by their own policy, those with most failures first.

    A step that fails once in each attempt of its run is none of them: that is told by the attempts.

    Arguments:
        steps: those of one run.
        least: how often one must have failed.
    """
    found = []
    for step in steps:
        if step.tries == 1:
            continue
        last = [(step.attempt, step.error)] if step.outcome in FAILED else []
        kept = [*((one.attempt, one.error) for one in step.earlier), *last]
        count = step.tries if last else step.tries - 1
        if count >= least and len(kept) > len({attempt for attempt, _ in kept}):
            found.append(Failures(step.key, count, counted(error or "" for _, error in kept)))
    return sorted(found, key=lambda failures: -failures.count)


def counted(errors: Iterable[str]) -> Reasons:
    """Return how often there was each error; where they differ in numbers alone, these are left out."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for error in errors:
        alike[_NUMBERS.sub("…", error)].append(error)
    reasons = [
        (len(texts), texts[0] if len(set(texts)) == 1 else pattern) for pattern, texts in alike.items()
    ]
    return sorted(reasons, key=lambda reason: -reason[0])


def _reason(attempt: AttemptView) -> str:
    if attempt.outcome in _ENDINGS:
        return _ENDINGS[attempt.outcome]
    return attempt.error or str(attempt.outcome)
