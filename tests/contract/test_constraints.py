"""Rows that must not exist cannot be stored, whoever writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from contending import step_write
from inspecting import Worker, execute

if TYPE_CHECKING:
    from celery_durable.store import Store

RUNS = {
    "an unknown state": ("run_state", "state = 'sleeping'"),
    "running without a fence": ("run_running_has_an_owner", "fence = null"),
    "running without a worker": ("run_running_has_an_owner", "worker = null"),
    "running without a time of claim": ("run_running_has_an_owner", "claimed_at = null"),
    "an owner while pending": ("run_idle_has_no_owner", "state = 'pending', due = now()"),
    "an owner while waiting": ("run_idle_has_no_owner", "state = 'waiting', due = now()"),
    "an owner after the end": ("run_idle_has_no_owner", "state = 'succeeded', finished_at = now()"),
    "over without a date": ("run_final_is_dated", "state = 'failed', worker = null"),
    "a date and not over": ("run_final_is_dated", "finished_at = now()"),
    "pending without a due time": ("run_wakes", "state = 'pending', worker = null"),
    "waiting for nothing": ("run_wakes", "state = 'waiting', worker = null"),
    "waiting for a retry without a due time": (
        "run_wakes",
        "state = 'waiting', reason = 'retry', worker = null",
    ),
}
CHECKPOINTS = {
    "an unknown outcome": ("checkpoint_outcome", "outcome = 'fine'"),
    "a checkpoint of no try": ("checkpoint_tries", "tries = 0"),
    "fewer than no tries spent": ("checkpoint_tries", "spent = -1"),
    "more tries spent than made": ("checkpoint_tries", "spent = 2"),
}
ATTEMPTS = {
    "an end without an outcome": ("attempt_outcome", "ended_at = now()"),
    "an outcome without an end": ("attempt_outcome", "outcome = 'lost'"),
    "an unknown outcome": ("attempt_outcome", "outcome = 'gone', ended_at = now()"),
}
CHORDS = {"a claim that never ends": ("chord_claim", "claimed_by = gen_random_uuid()")}
LINKS = {"a link before the first": ("chain_link_number", "number = 0")}
CASES = {
    **{name: ("run", *case) for name, case in RUNS.items()},
    **{name: ("checkpoint", *case) for name, case in CHECKPOINTS.items()},
    **{name: ("chord", *case) for name, case in CHORDS.items()},
    **{name: ("chain_link", *case) for name, case in LINKS.items()},
    **{f"{name} of an attempt": ("attempt", *case) for name, case in ATTEMPTS.items()},
}

COPY_OF_RUN = """
insert into durable.run (id, task, queue, state, due, message, body)
select id, task, queue, 'pending', now(), message, body from durable.run
"""
COPY_OF_WORKER = """
insert into durable.worker (token, hostname, pid, version) select token, '', 1, '' from durable.worker
"""


@pytest.mark.parametrize(("table", "constraint", "change"), CASES.values(), ids=CASES)
def test_a_row_that_breaks_an_invariant_is_refused(
    store: Store, table: str, constraint: str, change: str
) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("download", 1))
    store.chords.extend("group-1")
    execute(
        store, "insert into durable.chain_link (chain, number, signature) values (gen_random_uuid(), 1, '')"
    )

    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        execute(store, f"update durable.{table} set {change}")

    assert refused.value.diag.constraint_name == constraint


def test_every_constraint_of_the_schema_is_tested_here(store: Store) -> None:
    rows = execute(
        store,
        "select conname::text as name from pg_constraint c join pg_namespace n on n.oid = c.connamespace"
        " where n.nspname = 'durable' and contype = 'c'",
    )

    assert {row["name"] for row in rows} - {"leader_single_check"} == {case[1] for case in CASES.values()}


def test_what_must_be_there_once_is_unique(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("download", 1))
    for copy in (
        COPY_OF_RUN,
        "insert into durable.checkpoint select * from durable.checkpoint",
        "insert into durable.attempt select * from durable.attempt",
        COPY_OF_WORKER,
        "insert into durable.leader (holder, term, expires_at) values (1, 1, now()), (2, 1, now())",
    ):
        with pytest.raises(psycopg.errors.UniqueViolation):
            execute(store, copy)


def test_there_is_one_leader_row(store: Store) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        execute(
            store, "insert into durable.leader (single, holder, term, expires_at) values (false, 1, 1, now())"
        )
