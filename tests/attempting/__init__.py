"""One run, attempt after attempt, with the real executor on the real store."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from contending import keeper
from inspecting import Worker, execute
from replaying import inside, seam

from celery_durable.config import Settings
from celery_durable.executor import Execution
from celery_durable.seam import Suspended

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store import Store


class Killed(BaseException):
    """The process ends here: nothing after it is executed, nothing is stored."""


class Story:
    """One run, attempt after attempt."""

    def __init__(self, store: Store, run_id: str | None = None) -> None:
        self.store, self.worker = store, Worker(store)
        self.id = run_id or self.worker.enqueue()

    def claimed(self, **settings: Any) -> Execution:
        outcome = self.store.runs.claim(
            self.id, fence=uuid.uuid4(), token=self.worker.token, pid=7, revision=0
        )
        assert isinstance(outcome, tuple), outcome
        return Execution(
            *outcome,
            runs=self.store.runs,
            settings=Settings(**{"outage_budget": 0.0, **settings}),
            seam=seam(),
        )

    def attempt(self, body: Callable[[], Any], **settings: Any) -> Any:
        """Run a body; the attempt is then lost, as if its process had been killed."""
        execution = self.claimed(**settings)
        try:
            value = inside(execution, body)
            execution.conclude()
        except Killed:
            value = None
        finally:
            self.take_away()
        return value

    def leaves(self, body: Callable[[], Any], **settings: Any) -> Suspended:
        """Run a body that leaves its worker for a wait; return how."""
        with pytest.raises(Suspended) as suspended:
            self.attempt(body, **settings)
        assert suspended.value.stored
        return suspended.value

    def take_away(self) -> None:
        """Hand the run on, as the keeper does when its worker is gone."""
        self.store.runs.release_strays(self.worker.token, self.store.runs.owned(self.worker.token))

    def wake(self) -> int:
        """Let the keeper wake what is due; return how many runs that are."""
        with keeper(self.store) as statements:
            return len(statements.wake(100))

    def row(self, columns: str = "state, reason, due") -> dict[str, Any]:
        """Return what is stored of the run."""
        (row,) = execute(
            self.store, f"select {columns}, durable.clock() as now from durable.run where id = %s", self.id
        )
        return row

    def steps(self) -> dict[str, tuple[str, int]]:
        """Return outcome and tries of every step."""
        rows = execute(
            self.store,
            "select c.key, outcome, tries from durable.checkpoint c join durable.run r on r.key = run_key"
            " where r.id = %s order by seq",
            self.id,
        )
        return {row["key"]: (row["outcome"], row["tries"]) for row in rows}
