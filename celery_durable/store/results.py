"""What Celery's result API reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store import queries

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connections, Row


# Seconds to wait for Postgres: a caller waits meanwhile, or the main process of a worker stands still.
_READ_BUDGET, _WRITE_BUDGET = 5.0, 15.0


class ResultStore:
    """Results of plain tasks, the Celery view of runs, and group results.

    Arguments:
        connections: where to read and write.
        schema: the schema's name.
    """

    def __init__(self, connections: Connections, *, schema: str) -> None:
        self._connections = connections
        self._sql = queries.load("results", schema)

    def store(  # noqa: PLR0917  (a row)
        self,
        task_id: str,
        status: str,
        result: bytes | None,
        result_type: str,
        traceback: str | None,
        meta: bytes | None,
        *,
        patient: bool = False,
    ) -> None:
        """Store a plain task's state; the first SUCCESS stays, and ids of runs are left alone.

        `patient` says to wait for Postgres as long as a run's writes do.
        """
        self._execute(
            "store",
            budget=None if patient else _WRITE_BUDGET,
            task_id=task_id,
            status=status,
            result=result,
            result_type=result_type,
            traceback=traceback,
            meta=meta,
        )

    def get(self, ids: Sequence[str]) -> list[Row]:
        """Return the rows of these ids, those of runs first; unknown ids have none."""
        sql, parameters = self._sql["get"], {"ids": list(ids)}
        return self._connections.patiently(
            lambda connection: connection.execute(sql, parameters).fetchall(), budget=_READ_BUDGET
        )

    def finished(
        self,
        ids: Sequence[str],
        *,
        within: float = 0.0,
        every: float = 0.0,
        most: int = 100,
        patience: float = 30.0,
    ) -> list[Row]:
        """Return the rows of those of these ids that have finished.

        Arguments:
            ids: of runs and of plain tasks.
            within: seconds in which the server looks again before it answers that none has.
            every: seconds between two of its looks.
            most: how many rows to return at most.
            patience: seconds to wait for the answer.

        Raises `StoreUnavailableError` at the first failure.
        """
        values = {"ids": list(ids), "within": within, "every": every, "most": most}
        return self._ask("finished", values, patience + within)

    def states(self, ids: Sequence[str], *, patience: float = 30.0) -> list[Row]:
        """Return the rows of these ids as `get` does; raise `StoreUnavailableError` at the first failure."""
        return self._ask("get", {"ids": list(ids)}, patience)

    def _ask(self, name: str, values: dict[str, Any], patience: float) -> list[Row]:
        sql = self._sql[name]
        return self._connections.impatiently(
            lambda connection: connection.execute(sql, values).fetchall(), patience
        )

    def forget(self, task_id: str) -> None:
        """Delete a result, or a final run with all that belongs to it."""
        self._execute("forget_run", task_id=task_id)

    def save_group(self, group_id: str, result: bytes, result_type: str) -> None:
        """Store a group's result ids."""
        self._execute("save_group", id=group_id, result=result, result_type=result_type)

    def restore_group(self, group_id: str) -> Row | None:
        """Return a stored group."""
        sql = self._sql["restore_group"]
        return self._connections.patiently(
            lambda connection: connection.execute(sql, {"id": group_id}).fetchone()
        )

    def delete_group(self, group_id: str) -> None:
        """Delete a stored group."""
        self._execute("delete_group", id=group_id)

    def expire(
        self, age: timedelta, *, failed_age: timedelta | None = None, batch: int = 1000
    ) -> dict[str, int]:
        """Delete plain results (failures: `failed_age`) and groups older than `age`; return how many."""
        sql, total = self._sql["expire"], {"results": 0, "groups": 0}
        ages = {"age": age, "failed_age": age if failed_age is None else failed_age, "limit": batch}
        while True:
            row = self._connections.patiently(lambda connection: connection.execute(sql, ages).fetchone())
            counts = row or {}
            total = {name: total[name] + int(counts.get(name, 0)) for name in total}
            if max(counts.values(), default=0) < batch:
                return total

    def _execute(self, name: str, *, budget: float | None = _WRITE_BUDGET, **parameters: Any) -> None:
        sql = self._sql[name]
        self._connections.patiently(lambda connection: connection.execute(sql, parameters), budget=budget)
