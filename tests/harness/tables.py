"""What the store says, read past the code under test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FINAL = ("succeeded", "failed", "cancelled")


class Tables:
    """Read access to the schema `durable`; also through a server's restart.

    Arguments:
        url: a libpq URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def rows(self, sql: str, *parameters: Any) -> list[dict[str, Any]]:
        """Return the rows of a statement; once more if a restart has cut the connection meanwhile."""
        try:
            return self._rows(sql, parameters)
        except psycopg.OperationalError:
            return self._rows(sql, parameters)

    def _rows(self, sql: str, parameters: tuple[Any, ...]) -> list[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self.url, autocommit=True, row_factory=dict_row)
        cursor = self._connection.execute(sql.encode(), parameters)
        return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, *parameters: Any) -> Any:
        """Return the only value of a statement's only row."""
        ((value,),) = (row.values() for row in self.rows(sql, *parameters))
        return value

    def run(self, run_id: str) -> dict[str, Any]:
        """Return a run's row."""
        (row,) = self.rows("select * from durable.run where id = %s", run_id)
        return row

    def state(self, run_id: str) -> str | None:
        """Return a run's state, None when there is no such run."""
        rows = self.rows("select state from durable.run where id = %s", run_id)
        return rows[0]["state"] if rows else None

    def attempts(self, run_id: str) -> list[dict[str, Any]]:
        """Return the claims of a run, in order."""
        return self.rows(
            "select a.* from durable.attempt a join durable.run r on r.key = a.run_key"
            " where r.id = %s order by number",
            run_id,
        )

    def outcomes(self, run_id: str) -> list[str | None]:
        """Return how each claim of a run ended."""
        return [attempt["outcome"] for attempt in self.attempts(run_id)]

    def steps(self, run_id: str) -> dict[str, dict[str, Any]]:
        """Return the checkpoints of a run by key."""
        rows = self.rows(
            "select c.* from durable.checkpoint c join durable.run r on r.key = c.run_key"
            " where r.id = %s order by seq",
            run_id,
        )
        return {row["key"]: row for row in rows}

    def wait_for_step(self, run_id: str, key: str) -> None:
        """Return when a step is stored."""
        eventually(lambda: key in self.steps(run_id), what=f"step {key} of run {run_id} to be stored")

    def workers(self) -> set[str]:
        """Return the node names of the workers that count as alive."""
        return {row["hostname"] for row in self.rows("select hostname from durable.worker")}

    def beat(self, hostname: str) -> int:
        """Return how often a worker's heart has beaten, -1 for one that counts as dead."""
        rows = self.rows("select beat from durable.worker where hostname = %s", hostname)
        return rows[0]["beat"] if rows else -1

    def leader(self) -> str | None:
        """Return the node name of the keepers' leader."""
        rows = self.rows("select w.hostname from durable.leader l join durable.worker w on w.id = l.holder")
        return rows[0]["hostname"] if rows else None

    @contextmanager
    def locked(self, run_id: str) -> Iterator[None]:
        """Lock a run's row for a while."""
        with psycopg.connect(self.url) as connection:
            connection.execute("select from durable.run where id = %s for update", (run_id,))
            yield

    def end_the_blocked(self) -> None:
        """End sessions that wait for a lock: their clients are gone, which the server has not noticed yet."""
        sql = (
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        )
        eventually(lambda: self.rows(sql), what="a session that waits for a lock")

    def wait_for_state(self, run_id: str, *states: str, timeout: float = 20.0) -> dict[str, Any]:
        """Return the run's row as soon as it is in one of these states."""
        eventually(
            lambda: self.state(run_id) in states,
            timeout=timeout,
            what=lambda: (
                f"run {run_id} to be {states}: {self.rows('select * from durable.run where id = %s', run_id)}"
            ),
        )
        return self.run(run_id)

    def wait_until_all_final(self, ids: Iterable[str], timeout: float = 60.0) -> None:
        """Return when every one of these runs is over."""
        wanted = list(ids)

        def unfinished() -> list[dict[str, Any]]:
            return self.rows(
                "select id, state, reason, due, published_at, worker, attempt, recoveries from durable.run"
                " where id = any(%s) and not state = any(%s)",
                wanted,
                list(FINAL),
            )

        eventually(
            lambda: not unfinished(),
            timeout=timeout,
            what=lambda: f"{len(unfinished())} of {len(wanted)} runs: {unfinished()[:5]}",
        )

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
