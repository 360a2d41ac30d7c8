"""A run whose task was replaced: what is left of the one before it."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

from inspecting import Worker, execute

from celery_durable.run import Claim, Refusal
from celery_durable.store.runs import Release

if TYPE_CHECKING:
    from celery_durable.store import Store

REPLACED = Release(
    "replaced",
    timedelta(0),
    "timer",
    publish=True,
    retries=0,
    body=b"[2]",
    message=b"{}",
    task="media.publish",
    queue="celery",
    discard="all",
)


def claim(store: Store, worker: Worker, run_id: str, task: str) -> Claim | Refusal:
    claimed = store.runs.claim(run_id, task=task, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)
    return claimed if isinstance(claimed, Refusal) else claimed[0]


def test_an_old_message_of_a_task_that_was_replaced_claims_nothing(store: Store) -> None:
    worker = Worker(store)
    first = worker.start(task="media.process")
    store.runs.release(first.key, first.fence, REPLACED)

    assert isinstance(claim(store, worker, first.id, "media.process"), Refusal)
    assert execute(store, "select state, attempt from durable.run") == [{"state": "pending", "attempt": 1}]
    second = claim(store, worker, first.id, "media.publish")

    assert isinstance(second, Claim)
    assert (second.task, second.attempt, second.body) == ("media.publish", 2, b"[2]")


def test_a_replacement_has_no_history_and_another_seed(store: Store) -> None:
    worker = Worker(store)
    first = worker.start()
    worker.step(first, "download", 1)
    worker.step(first, "upload", 2, "error")
    store.runs.release(first.key, first.fence, REPLACED)

    claimed = store.runs.claim(
        first.id, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0, task="media.publish"
    )
    assert isinstance(claimed, tuple)
    second, history = claimed
    assert history == []
    assert (second.replacements, second.retries) == (first.replacements + 1, 0)
    assert second.seed != first.seed
