"""Inspection and operator actions: lists, one run's whole story, cancel and resume."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.checkpoint import Checkpoint
from celery_durable.run import RunState
from celery_durable.store import queries
from celery_durable.store.questions import Filter, list_runs, whole_run
from celery_durable.store.refusing import plainly
from celery_durable.store.resuming import children_to_resume, put_aside
from celery_durable.store.views import (
    Change,
    Count,
    Match,
    Payloads,
    QueueStats,
    Replayable,
    SlotStats,
    Stats,
    TaskStats,
    WorkerStats,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection, Connections, Row
    from celery_durable.store.questions import Question, Statement
    from celery_durable.store.views import Page, RunView

__all__ = ["Filter", "InspectionStore"]

T = TypeVar("T")

# A person waits for the answer: say soon that Postgres is away.
_READ_BUDGET, _STATS_BUDGET, _WRITE_BUDGET = 3.0, 15.0, 15.0
_BEHIND_ALL = "\U0010ffff"


class InspectionStore:
    """What people read, and what they do to a run.

    Arguments:
        connections: where to read and write.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._sql = queries.load("inspection", schema)

    def list(self, wanted: Filter, *, limit: int = 50, before: int | None = None) -> Page:
        """Return the newest runs that match, at most `limit`, with keys below `before`."""
        return self._ask(list_runs(self._sql, wanted, limit, before))

    def get(self, run_id: str) -> RunView | None:
        """Return a run's whole story, read in one round trip; None when there is no such run."""
        return self._ask(whole_run(self._sql, run_id))

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
        over = rows[0]["state"] in ("failed", "cancelled") and rows[0]["ending"] is None
        history = self._read(self._sql["history_if_resumed" if over else "history"], {"run": rows[0]["key"]})
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
        self,
        ids: Sequence[str],
        *,
        operation: uuid.UUID,
        actor: str | None,
        reason: str | None,
        cause: str = "cancelled",
        terminate: bool = False,
        budget: float = _WRITE_BUDGET,
    ) -> Sequence[Change]:
        """Cancel runs, all in one transaction; return what became of each known one.

        `operation` is a fresh id for each call: it lets the write recognise itself after a lost answer.
        `cause` is the reason with which they end. Who says `terminate` once more gives up what a replay is to
        find out.
        """
        sql = self._sql["cancel"]
        parameters = {
            "ids": list(dict.fromkeys(ids)),
            "operation": operation,
            "actor": actor,
            "reason": reason,
            "cause": cause,
            "terminate": terminate,
        }
        rows = self._patiently(lambda connection: connection.execute(sql, parameters).fetchall(), budget)
        return [_change(row) for row in rows]

    def executing(self, ids: Sequence[str]) -> Sequence[str]:
        """Return which of these runs, and of those that are cancelled with them, are being executed."""
        return [row["id"] for row in self._read(self._sql["executing"], {"ids": list(ids)})]

    def retry_now(
        self,
        ids: Sequence[str],
        *,
        operation: uuid.UUID,
        actor: str | None,
        reason: str | None,
        check: timedelta,
    ) -> Sequence[Change]:
        """End the wait of runs that wait for a retry; return what became of each known one.

        The caller publishes the messages of those that changed.
        """
        parameters = {
            "ids": list(dict.fromkeys(ids)),
            "operation": operation,
            "actor": actor,
            "reason": reason,
            "check": check,
        }
        rows = self._patiently(
            lambda connection: connection.execute(self._sql["retry_now"], parameters).fetchall(),
            _WRITE_BUDGET,
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
                connection.execute(self._sql["hold"], parameters)
                connection.execute(self._sql["hold_singletons"], parameters)
                connection.execute(self._sql["take_singletons"], parameters)
                children = children_to_resume(connection, self._sql, ids)
                rows = connection.execute(self._sql["resume"], parameters).fetchall()
                now = [row for row in rows if row["now"]]
                for row in now:
                    row["children"] = children.get(row["id"], 0)
                put_aside(connection, self._sql, now, audit)
            return rows

        return [_change(row) for row in self._patiently(work, _WRITE_BUDGET)]

    def children_to_resume(self, ids: Sequence[str]) -> dict[str, int]:
        """Return how many failed and cancelled children each of these runs would start again."""
        return self._patiently(lambda c: children_to_resume(c, self._sql, ids), _READ_BUDGET)

    def _ask(self, question: Question[T]) -> T:
        answers: list[Sequence[Row]] | None = None
        while True:
            try:
                statements = question.send(answers)
            except StopIteration as end:
                answer: T = end.value
                return answer
            answers = self._patiently(partial(_together, statements), _READ_BUDGET)

    def _read(self, sql: str, parameters: dict[str, Any]) -> Sequence[Row]:
        return self._patiently(lambda c: c.execute(sql, parameters).fetchall(), _READ_BUDGET)

    def _patiently(self, work: Callable[[Connection], T], budget: float) -> T:
        with plainly():
            return self._connections.patiently(work, budget=budget)


def _together(statements: Sequence[Statement], connection: Connection) -> list[Sequence[Row]]:
    if len(statements) == 1:
        return [connection.execute(*statements[0]).fetchall()]
    with connection.pipeline():
        cursors = [connection.execute(*statement) for statement in statements]
    return [cursor.fetchall() for cursor in cursors]


_CHANGE = frozenset(field.name for field in fields(Change))


def _change(row: Row) -> Change:
    known = {name: value for name, value in row.items() if name in _CHANGE}
    return Change(**{**known, "before": RunState(row["before"]), "state": RunState(row["state"])})
