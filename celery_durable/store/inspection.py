"""Inspection and operator actions: lists, one run's whole story, cancel and resume."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.checkpoint import Checkpoint
from celery_durable.run import RunState
from celery_durable.store import queries
from celery_durable.store.refusing import plainly
from celery_durable.store.views import (
    AttemptView,
    Change,
    Count,
    EventView,
    KeyView,
    Match,
    Page,
    Payloads,
    QueueStats,
    Replayable,
    RunSummary,
    RunView,
    SignalView,
    SlotStats,
    Stats,
    StepView,
    TaskStats,
    WorkerStats,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence

    from celery_durable.store.connections import Connection, Connections, Row

T = TypeVar("T")

# A person waits for the answer: say soon that Postgres is away.
_READ_BUDGET, _STATS_BUDGET, _WRITE_BUDGET = 3.0, 15.0, 15.0
# How long a transaction may have stayed open after it stored a run, for the run to be found by its time.
_SLACK = timedelta(hours=1)
_LAST_KEY = 2**63 - 1
_BEHIND_ALL = "\U0010ffff"

_STATES_OF_REASON = {
    "exhausted": RunState.FAILED,
    "retry": RunState.WAITING,
    "timer": RunState.WAITING,
    "sleep": RunState.WAITING,
    "signal": RunState.WAITING,
    "children": RunState.WAITING,
    "slot": RunState.WAITING,
    "version": RunState.WAITING,
    "replaced": RunState.WAITING,
    "cancelled": RunState.CANCELLED,
    "revoked": RunState.CANCELLED,
    "expired": RunState.CANCELLED,
}


@dataclass(frozen=True)
class Filter:
    """Which runs to list; what is None does not matter.

    Attributes:
        states: stored states, any of them.
        reason: why a run waits or ended: `retry`, `timer`, `exhausted`, `revoked`, ...
        since: only runs created then or later; a `timedelta` counts back from the database's now.
        until: only runs created before then.
        worker: host name of the worker that is executing the run.
        has_error: whether the run failed or waits for a retry.
    """

    states: Sequence[RunState] | None = None
    task: str | None = None
    reason: str | None = None
    since: datetime | timedelta | None = None
    until: datetime | timedelta | None = None
    worker: str | None = None
    has_error: bool | None = None

    @property
    def possible_states(self) -> list[str] | None:
        """The states that can match: an index finds them, where a reason alone would be a scan."""
        if self.states:
            return [RunState(state).value for state in self.states]
        if self.worker is not None:
            return [RunState.RUNNING.value, RunState.CANCELLING.value]
        if self.has_error:
            return [RunState.FAILED.value, RunState.WAITING.value]
        if (reason := self.reason) in _STATES_OF_REASON:
            return [_STATES_OF_REASON[reason].value]
        return None


class InspectionStore:
    """What people read, and the two things they do to a run.

    Arguments:
        connections: where to read and write.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._sql = queries.load("inspection", schema)

    def list(self, wanted: Filter, *, limit: int = 50, before: int | None = None) -> Page:
        """Return the newest runs that match, at most `limit`, with keys below `before`."""
        parameters: dict[str, Any] = {
            "task": wanted.task,
            "reason": wanted.reason,
            "worker": wanted.worker,
            "states": wanted.possible_states,
            "has_error": wanted.has_error or None,
            "has_no_error": True if wanted.has_error is False else None,
            "limit": limit + 1,
        }
        bounds: dict[str, Any] = {"before": _LAST_KEY if before is None else before}
        if wanted.since is not None:
            moment = self._moment(wanted.since, -_SLACK)
            bounds.update(since=moment["at"], after=moment["low"])
        if wanted.until is not None:
            moment = self._moment(wanted.until, _SLACK)
            bounds.update(until=moment["at"], before=min(bounds["before"], moment["high"]))
        parameters = {name: value for name, value in parameters.items() if value is not None} | bounds
        sql = queries.with_lines(self._sql["list"], parameters)
        rows = self._read(sql, {"states": ["any"], **parameters})
        runs = tuple(RunSummary(**row) for row in rows[:limit])
        return Page(runs, runs[-1].key if len(rows) > limit else None)

    def get(self, run_id: str) -> RunView | None:
        """Return a run's whole story, read in one round trip; None when there is no such run."""
        parameters = {"id": run_id}

        def work(connection: Connection) -> list[Sequence[Row]]:
            with connection.pipeline():
                names = ("run", "attempts", "steps", "events", "signals", "forks", "keys")
                cursors = [connection.execute(self._sql[name], parameters) for name in names]
            return [cursor.fetchall() for cursor in cursors]

        run, attempts, steps, events, signals, forks, keys = self._patiently(work, _READ_BUDGET)
        if not run:
            return None
        return RunView(
            **run[0],
            attempts=tuple(AttemptView(**row) for row in attempts),
            steps=tuple(StepView(**row) for row in steps),
            events=tuple(EventView(**{**row, "detail": row["detail"] or {}}) for row in events),
            signals=tuple(SignalView(**row) for row in signals),
            forks=tuple(row["id"] for row in forks),
            keys=tuple(KeyView(**row) for row in keys),
        )

    def payloads(self, run_id: str) -> Payloads | None:
        """Return what a run was called with, what its steps stored and what it ended with."""
        rows = self._read(self._sql["payloads"], {"id": run_id})
        if not rows:
            return None
        outputs = self._read(self._sql["outputs"], {"id": run_id})
        return Payloads(**rows[0], outputs=tuple(tuple(row.values()) for row in outputs))

    def replayable(self, run_id: str) -> tuple[Replayable, Sequence[Checkpoint]] | None:
        """Return what is stored of a run, to be replayed; None when there is no such run."""
        rows = self._read(self._sql["replayable"], {"id": run_id})
        if not rows:
            return None
        history = self._read(self._sql["history"], {"run": rows[0]["key"]})
        steps = [Checkpoint(**{**step, "clock": tuple(step["clock"] or ())}) for step in history]
        return Replayable(**rows[0]), steps

    def stats(self, window: timedelta) -> Stats:
        """Return runs by state, queues, workers, and what ended within `window`, by task."""

        def work(connection: Connection) -> list[Sequence[Row]]:
            with connection.pipeline():
                names = ("counts", "stats_queues", "stats_tasks", "stats_workers", "stats_slots")
                cursors = [connection.execute(self._sql[name], {"age": window}) for name in names]
            return [cursor.fetchall() for cursor in cursors]

        states, queues, tasks, workers, slots = self._patiently(work, _STATS_BUDGET)
        return Stats(
            window.total_seconds(),
            tuple(Count(**row) for row in states),
            tuple(QueueStats(**row) for row in queues),
            tuple(TaskStats(**row) for row in tasks),
            tuple(WorkerStats(**row) for row in workers),
            tuple(SlotStats(**row) for row in slots),
        )

    def resolve(self, prefix: str, *, limit: int = 6) -> Sequence[Match]:
        """Return runs whose id begins with `prefix`; only the one whose id it is, if there is one."""
        rows = self._read(
            self._sql["resolve"], {"prefix": prefix, "end": prefix + _BEHIND_ALL, "limit": limit}
        )
        matches = [Match(**row) for row in rows]
        return matches[:1] if matches and matches[0].id == prefix else matches

    def counts(self) -> Sequence[Count]:
        """Return how many runs are in each state, for each reason."""
        return [Count(**row) for row in self._read(self._sql["counts"], {})]

    def cancel(
        self, ids: Sequence[str], *, operation: uuid.UUID, actor: str | None, reason: str | None
    ) -> Sequence[Change]:
        """Cancel runs, all in one transaction; return what became of each known one.

        `operation` is a fresh id for each call: it lets the write recognise itself after a lost answer.
        """
        sql = self._sql["cancel"]
        parameters = {
            "ids": list(dict.fromkeys(ids)),
            "operation": operation,
            "actor": actor,
            "reason": reason,
        }
        rows = self._patiently(
            lambda connection: connection.execute(sql, parameters).fetchall(), _WRITE_BUDGET
        )
        return [_change(row) for row in rows]

    def resume(
        self,
        ids: Sequence[str],
        *,
        operation: uuid.UUID,
        actor: str | None,
        reason: str | None,
        check: timedelta,
        version: str | None = None,
    ) -> Sequence[Change]:
        """Open a new generation of failed and cancelled runs; return what became of each known one.

        They are of `version` from now on, if it is given. The caller publishes the messages of those that
        changed.
        """
        audit = {"operation": operation, "actor": actor, "reason": reason}
        parameters = {"ids": list(dict.fromkeys(ids)), "operation": operation, "check": check}
        parameters["version"] = version

        def work(connection: Connection) -> list[Row]:
            with connection.transaction():
                rows = connection.execute(self._sql["resume"], parameters).fetchall()
                now = [row for row in rows if row["now"]]
                if now:
                    touched = {
                        "keys": [row["key"] for row in now],
                        "before": [row["before"] for row in now],
                        "generations": [row["generation"] for row in now],
                    }
                    connection.execute(self._sql["resume_discard"], touched | audit)
            return rows

        return [_change(row) for row in self._patiently(work, _WRITE_BUDGET)]

    def _moment(self, when: datetime | timedelta, slack: timedelta) -> Row:
        ago = isinstance(when, timedelta)
        parameters = {"at": None if ago else when, "ago": when if ago else None, "slack": slack}
        return self._read(self._sql["moment"], parameters)[0]

    def _read(self, sql: str, parameters: dict[str, Any]) -> Sequence[Row]:
        return self._patiently(lambda c: c.execute(sql, parameters).fetchall(), _READ_BUDGET)

    def _patiently(self, work: Callable[[Connection], T], budget: float) -> T:
        with plainly():
            return self._connections.patiently(work, budget=budget)


_CHANGE = frozenset(field.name for field in fields(Change))


def _change(row: Row) -> Change:
    known = {name: value for name, value in row.items() if name in _CHANGE}
    return Change(**{**known, "before": RunState(row["before"]), "state": RunState(row["state"])})
