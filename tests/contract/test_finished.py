"""The question of those who wait: which of these have finished, asked again on the server for a while."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from contending import background
from harness.waiting import eventually

if TYPE_CHECKING:
    from celery_durable.store import Store

_SLEEPING = "select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
_SLEEPING = "select from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
LONG = 30.0  # seconds: a look that is not woken fails its test


def stored(store: Store, task_id: str, status: str = "SUCCESS", result: bytes = b"1") -> None:
    store.results.store(task_id, status, result, "application/json", None, None)


def execute(store: Store, sql: str, *values: Any) -> None:
    with store.connections.dedicated() as connection:
        connection.execute(sql.encode(), values)


def a_run(store: Store, state: str, **columns: Any) -> str:
    """Store a run in a state."""
    run_id = str(uuid.uuid4())
    execute(
        store,
        "insert into durable.run (id, task, queue, state, message, body, due, reason, result, finished_at)"
        " values (%s, 't', 'q', %s, '{}', '[]', %s, %s, '7', %s)",
        run_id,
        state,
        None if columns.get("finished_at") else "2030-01-01",
        columns.get("reason"),
        columns.get("finished_at"),
    )
    return run_id


def looking(store: Store, sessions: int = 1) -> None:
    """Return when this many sessions sleep between two looks."""
    with store.connections.dedicated() as watcher:
        eventually(lambda: len(watcher.execute(_SLEEPING).fetchall()) >= sessions, what="the server to sleep")


def test_a_look_sees_what_was_committed_after_the_question_was_asked(store: Store) -> None:
    asked = background(lambda: store.results.finished(["late"], within=LONG, every=0.01))
    looking(store)

    stored(store, "late")

    assert [row["task_id"] for row in asked.result(10)] == ["late"]


def test_a_look_sees_a_run_that_finished_after_the_question_was_asked(store: Store) -> None:
    run_id = a_run(store, "pending")
    asked = background(lambda: store.results.finished([run_id], within=LONG, every=0.01))
    looking(store)

    execute(
        store,
        "update durable.run set state = 'succeeded', due = null, finished_at = now() where id = %s",
        run_id,
    )

    assert [row["state"] for row in asked.result(10)] == ["succeeded"]


def test_nothing_finished_is_an_empty_answer_when_the_time_is_up(store: Store) -> None:
    stored(store, "started", "STARTED")
    assert store.results.finished(["started", "unknown"], within=0.01) == []
    assert store.results.finished([], within=0.01) == []


@pytest.mark.parametrize("status", ["SUCCESS", "FAILURE", "REVOKED"])
def test_a_plain_result_is_told_as_it_is_read(store: Store, status: str) -> None:
    stored(store, "plain", status)
    assert store.results.finished(["plain"]) == store.results.get(["plain"])


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_run_is_told_as_it_is_read(store: Store, state: str) -> None:
    run_id = a_run(store, state, finished_at="2026-01-01")
    assert store.results.finished([run_id]) == store.results.get([run_id])


@pytest.mark.parametrize(("state", "reason"), [("pending", None), ("waiting", "retry"), ("waiting", "timer")])
def test_a_plain_result_says_nothing_about_a_run_of_its_id(
    store: Store, state: str, reason: str | None
) -> None:
    """A state stored before the run was known: the run decides, as it does for who reads."""
    run_id = a_run(store, state, reason=reason)
    execute(store, "insert into durable.result (task_id, status) values (%s, 'REVOKED')", run_id)

    assert store.results.finished([run_id]) == []


def test_many_are_told_a_number_at_a_time(store: Store) -> None:
    ids = [f"plain-{n}" for n in range(30)]
    for task_id in ids:
        stored(store, task_id)

    first = store.results.finished(ids, most=20)
    assert len(first) == 20
    rest = store.results.finished(
        [one for one in ids if one not in {row["task_id"] for row in first}], most=20
    )
    assert sorted(row["task_id"] for row in first + rest) == sorted(ids)


def test_a_plan_made_for_small_tables_reads_no_large_one_from_end_to_end(store: Store) -> None:
    """A session keeps its plan; the tables may have grown a thousand times since."""
    with store.connections.dedicated() as connection:
        connection.execute("load 'auto_explain'")
        connection.execute("set auto_explain.log_min_duration = 0")
        connection.execute("set auto_explain.log_nested_statements = on")
        connection.execute("set client_min_messages = log")
        plans: list[str] = []
        connection.add_notice_handler(lambda notice: plans.append(str(notice.message_primary)))
        for _ in range(8):
            connection.execute("select * from durable.finished(array['x', 'y'], 0, 0, 10)")

    looks = [plan for plan in plans if "Index" in plan]
    assert len(looks) >= 8
    assert [plan for plan in plans if "Seq Scan" in plan] == []
