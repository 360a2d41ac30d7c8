"""Writes to a run from outside of its attempts: its worker lost it, somebody ended it, somebody was told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery_durable.store.enqueueing import ENQUEUE_BUDGET, NewRuns

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection


class RunsFromOutside(NewRuns):
    """What a worker's main process and Celery's hooks write; each decides under the run's lock."""

    def recover_child(
        self,
        run_id: str,
        *,
        token: uuid.UUID,
        pid: int | None,
        error: str,
        max_recoveries: int,
        result: bytes,
        result_type: str,
        budget: float,
    ) -> dict[str, Any] | None:
        """Hand on the run of a pool child that is gone; None when this worker does not own it any more."""
        parameters = {
            "id": run_id,
            "token": token,
            "pid": pid,
            "error": error,
            "max_recoveries": max_recoveries,
            "result": result,
            "result_type": result_type,
            "check": self._check,
        }
        row: dict[str, Any] | None = self._one("recover_child", parameters, budget=budget)
        return row

    def revoke(self, run_id: str, *, token: uuid.UUID | None, terminated: bool) -> bool:
        """End a run as Celery's revoke does; return whether it was ended."""
        parameters = {"id": run_id, "token": token, "terminated": terminated}
        return self._one("revoke", parameters, budget=ENQUEUE_BUDGET) is not None

    def goes_on(self, run_id: str, *, budget: float) -> bool:
        """Return whether a run that was revoked takes back what it has done, or has been resumed since."""
        return self._one("goes_on", {"id": run_id}, budget=budget) is not None

    def reported(self, run_id: str, problem: str | None = None) -> None:
        """Note that a failed run's error callbacks, chain and chord have been told, or why they cannot be."""
        self._one("reported", {"id": run_id, "problem": problem}, budget=ENQUEUE_BUDGET, fetch=False)

    def fail_unclaimed(self, run_id: str, result: bytes, result_type: str, traceback: str | None) -> bool:
        """End a pending run that failed in front of its body, before its claim; return whether it did.

        One that is to take back what it has done is tried once more for that.
        """
        parameters = {"id": run_id, "result": result, "result_type": result_type, "traceback": traceback}
        row = self._one("fail_unclaimed", parameters, budget=ENQUEUE_BUDGET)
        return row is not None and row["state"] == "failed"

    def owned(self, token: uuid.UUID) -> list[tuple[str, uuid.UUID]]:
        """Return id and fence of each run that a worker owns."""
        rows = self._connections.once(
            lambda connection: connection.execute(self._sql["owned"], {"token": token}).fetchall()
        )
        return [(row["id"], row["fence"]) for row in rows]

    def release_strays(self, token: uuid.UUID, strays: Collection[tuple[str, uuid.UUID]]) -> list[str]:
        """Hand on runs (id and fence) that this worker owns and does not execute."""
        parameters = {
            "token": token,
            "ids": [run_id for run_id, _ in strays],
            "fences": [fence for _, fence in strays],
        }
        rows = self._connections.once(
            lambda connection: connection.execute(self._sql["release_strays"], parameters).fetchall()
        )
        return [row["id"] for row in rows]
