"""Runs in every state, made with the statements a worker uses."""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from contending import step_write

from celery_durable.run import RunState
from celery_durable.store.runs import Finish, NewRun, Release

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.run import Claim
    from celery_durable.store import Store

NOW = timedelta(0)


class Worker:
    """A live worker row, and what its children do with runs."""

    def __init__(self, store: Store, hostname: str = "worker@one") -> None:
        self.store = store
        self.token = uuid.uuid4()
        with store.connections.dedicated() as connection:
            self.id = store.keeper(connection).register(self.token, hostname=hostname, pid=100, version="0")

    def enqueue(self, run_id: str | None = None, **options: Any) -> str:
        run_id = run_id or str(uuid.uuid4())
        defaults = {
            "task": "media.process",
            "queue": "celery",
            "priority": None,
            "message": b"{}",
            "body": b"[]",
        }
        self.store.runs.enqueue(NewRun(id=run_id, **{**defaults, **options}))
        return run_id

    def claim(self, run_id: str, *, fence: uuid.UUID | None = None) -> Claim:
        claimed = self.store.runs.claim(
            run_id, fence=fence or uuid.uuid4(), token=self.token, pid=os.getpid(), revision=0
        )
        assert isinstance(claimed, tuple), claimed
        return claimed[0]

    def start(self, run_id: str | None = None, **options: Any) -> Claim:
        return self.claim(self.enqueue(run_id, **options))

    def step(self, claim: Claim, key: str, seq: int, outcome: str = "ok", **more: Any) -> None:
        error = None if outcome == "ok" else "ValueError: no"
        write = step_write(key, seq, outcome, **{"error": error, **more})
        self.store.runs.checkpoint(claim.key, claim.fence, write)

    def succeed(self, claim: Claim) -> str:
        self.store.runs.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED, b"1", "application/json"))
        return claim.id

    def fail(self, claim: Claim, *, error: str = "ValueError: no", reason: str | None = None) -> str:
        outcome = Finish(
            RunState.FAILED,
            b"{}",
            "application/json",
            traceback=f"Traceback\n{error}",
            error=error,
            reason=reason,
        )
        self.store.runs.finish(claim.key, claim.fence, outcome)
        return claim.id

    def retry(self, claim: Claim, *, delay: timedelta = timedelta(minutes=5)) -> str:
        release = Release(
            "retry", delay, "retry", retries=claim.retries + 1, error="ValueError: no", discard="errors"
        )
        self.store.runs.release(claim.key, claim.fence, release)
        return claim.id

    def vanish(self) -> None:
        """Go without a word: the row is buried, the runs are orphans."""
        execute(self.store, "delete from durable.worker where id = %s", self.id)


def execute(store: Store, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Run one statement past the store."""
    with store.connections.dedicated() as connection:
        cursor = connection.execute(sql.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def open_transaction(store: Store) -> Iterator[Any]:
    """Yield a connection in a transaction that another one has to wait for; commit at the end."""
    with store.connections.dedicated() as connection, connection.transaction():
        yield connection
