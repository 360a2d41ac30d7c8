"""What the poller asks: rows of the store become what Celery's result API shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import states

from celery_durable.waiting.wait import Arrival

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.store.connections import Row
    from celery_durable.waiting.pace import Question

_FIRST_MOST, _MOST, _BYTES = 50, 500, 4 * 1024 * 1024


class Questions:
    """The questions of one backend.

    Arguments:
        backend: a `DurableBackend`.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._most = _FIRST_MOST

    @property
    def outage_budget(self) -> float:
        """Seconds that a wait outlasts Postgres being away."""
        return float(self._backend.settings.outage_budget)

    def finished(self, ids: Sequence[str], asked: Question, patience: float) -> tuple[list[Arrival], bool]:
        """Return those of these ids that have finished, and whether there may be more of them."""
        most = self._most
        rows = self._backend.store.results.finished(
            ids, within=asked.within, every=asked.every, most=most, patience=patience
        )
        if rows:
            # So many results at a time that they fit into memory whatever their size.
            average = sum(len(row["result"] or b"") for row in rows) // len(rows)
            self._most = max(1, min(_MOST, _BYTES // (average + 1)))
        return [self._arrival(row) for row in rows], len(rows) == most

    def states(self, ids: Sequence[str], patience: float) -> list[Arrival]:
        """Return what is known of each of these ids."""
        rows = self._backend.store.results.states(ids, patience=patience)
        return [
            self._arrival(row, mark=_mark(row))
            for row in {row["task_id"]: row for row in reversed(rows)}.values()
        ]

    def _arrival(self, row: Row, mark: object = None) -> Arrival:
        task_id = row["task_id"]
        try:
            meta = self._backend.meta_of(row)
        except Exception as error:  # noqa: BLE001  (it is for whoever waits for this one)
            return Arrival(task_id, None, ready=True, error=error)
        if meta["status"] == states.SUCCESS:
            self._backend._cache[task_id] = meta  # noqa: SLF001
        return Arrival(task_id, meta, ready=meta["status"] in states.READY_STATES, mark=mark)


def _mark(row: Row) -> tuple[Any, ...]:
    """Return what changes with the state that Celery shows."""
    shown = ("state", "reason", "custom_state", "result", "pid")
    return tuple(bytes(value) if isinstance(value := row[name], memoryview) else value for name in shown)
