"""Which runs an operation in bulk changes: those that match a filter and can be changed at all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from celery_durable.operations.outcomes import AT_ONCE, Outcome
from celery_durable.run import FINAL_STATES, RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from celery_durable.store.inspection import InspectionStore
    from celery_durable.store.questions import Filter

RESUMABLE = frozenset({RunState.FAILED, RunState.CANCELLED})
RETRYABLE = frozenset({RunState.WAITING, RunState.CANCELLING})
CANCELLABLE = frozenset(RunState) - FINAL_STATES


def in_bulk(
    inspection: InspectionStore,
    wanted: Filter,
    possible: frozenset[RunState],
    change: Callable[[Sequence[str]], Sequence[Outcome]],
    *,
    dry_run: bool,
    progress: Callable[[int], None] | None,
) -> Sequence[Outcome]:
    """Change every run that matches, batch by batch in the order of their keys; return what became of each.

    A run is met once, however fast it fails again. Raises `ValueError` for a filter that says nothing.
    """
    if wanted.says_nothing:
        message = "An empty filter would change every run: say which ones, by state, task, reason or time"
        raise ValueError(message)
    outcomes: list[Outcome] = []
    for batch in _batches(inspection, wanted, possible):
        if dry_run:
            outcomes += batch
        else:
            outcomes += change([one.id for one in batch])
        if progress is not None:
            progress(len(outcomes))
    return outcomes


def children_of(inspection: InspectionStore, ids: Sequence[str]) -> dict[str, int]:
    """Return how many children each of these runs would start again, of those with any."""
    counts: dict[str, int] = {}
    for start in range(0, len(ids), AT_ONCE):
        counts |= inspection.children_to_resume(ids[start : start + AT_ONCE])
    return counts


def with_children(inspection: InspectionStore, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
    """Say of runs that would be resumed how many children would be with each."""
    counts = children_of(inspection, [one.id for one in outcomes])
    return [replace(one, children=counts.get(one.id, 0)) for one in outcomes]


def _batches(
    inspection: InspectionStore, wanted: Filter, possible: frozenset[RunState]
) -> Iterator[list[Outcome]]:
    named = wanted.possible_states
    states = [state for state in sorted(possible) if named is None or state.value in named]
    before: int | None = None
    while states:
        page = inspection.list(replace(wanted, states=states), limit=AT_ONCE, before=before)
        if page.runs:
            yield [Outcome(run.id, run.state, run.state, changed=False) for run in page.runs]
        before = page.next
        if before is None:
            return
