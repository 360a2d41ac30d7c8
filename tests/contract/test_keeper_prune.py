"""Deleting a run deletes all that belongs to it, a tree goes as a whole, and nothing brings it back."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from contending import background, changed, keeper, move_clock, stalled, wait_until_blocked
from inspecting import Worker, execute, open_transaction

from celery_durable.keeper.retention import prune as prune_all
from celery_durable.run import Refusal
from celery_durable.store import queries

if TYPE_CHECKING:
    from celery_durable.store import Store

WEEK = timedelta(days=7)
CHECK = timedelta(seconds=30)


def prune(store: Store, limit: int = 100) -> int:
    with keeper(store) as statements:
        return statements.prune(WEEK, limit)


def ids(store: Store) -> list[str]:
    return [row["id"] for row in execute(store, "select id from durable.run order by key")]


def orphan_rows(store: Store) -> dict[str, int]:
    counts = {}
    for table in ("checkpoint", "attempt", "event"):
        sql = f"select count(*) as n from durable.{table} where run_key not in (select key from durable.run)"
        counts[table] = int(execute(store, sql)[0]["n"])
    return counts


def over(worker: Worker, run_id: str, root: str | None = None) -> str:
    claim = worker.start(run_id, root=root or run_id)
    worker.step(claim, "download", 1)
    worker.store.inspection.cancel([run_id], operation=uuid.uuid4(), actor="ada", reason=None)
    return worker.succeed(claim)


def test_a_run_goes_with_its_steps_attempts_and_events(store: Store) -> None:
    worker = Worker(store)
    over(worker, "old")
    move_clock(store, "8 days")
    over(worker, "young")
    worker.start("running")
    worker.enqueue("pending")
    worker.enqueue("waiting", countdown=timedelta(days=30))

    assert prune(store) == 1

    assert ids(store) == ["young", "running", "pending", "waiting"]
    assert orphan_rows(store) == {"checkpoint": 0, "attempt": 0, "event": 0}
    assert prune(store) == 0


@pytest.mark.parametrize("unfinished", ["root", "child", "grandchild"])
def test_a_tree_stays_as_long_as_one_of_its_runs_is_not_over(store: Store, unfinished: str) -> None:
    worker = Worker(store)
    for run_id in ("root", "child", "grandchild"):
        if run_id == unfinished:
            worker.enqueue(run_id, root="root", countdown=timedelta(days=30))
        else:
            over(worker, run_id, "root")
    over(worker, "alone")
    move_clock(store, "8 days")

    assert prune(store) == 1
    assert ids(store) == ["root", "child", "grandchild"]


def test_a_tree_goes_as_a_whole_also_past_the_batch(store: Store) -> None:
    worker = Worker(store)
    for run_id in ("root", *(f"child {number}" for number in range(5))):
        over(worker, run_id, "root")
    move_clock(store, "8 days")

    assert prune(store, limit=2) == 6
    assert ids(store) == []


def test_runs_that_stay_do_not_keep_others_from_going(store: Store) -> None:
    worker = Worker(store)
    worker.start("root")
    for number in range(5):
        over(worker, f"child {number}", "root")
    over(worker, "alone")
    move_clock(store, "8 days")

    assert prune(store, limit=2) == 1


def resume(store: Store, run_id: str) -> None:
    store.inspection.resume([run_id], operation=uuid.uuid4(), actor="ada", reason=None, check=CHECK)


def failed_tree(store: Store) -> None:
    worker = Worker(store)
    over(worker, "root")
    worker.fail(worker.start("child", root="root"))
    execute(store, "update durable.run set finished_at = finished_at - interval '8 days'")


UNDER_LOCK = (
    ("having count(*) = count(locked.key)", ""),
    ("select member.key from member join", "select key from locked join member using (key) join"),
)


@pytest.mark.parametrize("naive", [False, True])
def test_a_tree_with_a_run_resumed_while_it_was_judged_stays(store: Store, *, naive: bool) -> None:
    failed_tree(store)
    sql = queries.load("keeper")["prune"]
    sql = changed(sql, *UNDER_LOCK) if naive else sql

    def judge(slow: Store) -> None:
        with slow.connections.dedicated() as connection:
            connection.execute(sql.encode(), {"age": WEEK, "failed_age": WEEK, "limit": 10})

    with stalled(store) as start:
        judging = start(judge)
        resume(store, "child")

    judging.result(10)
    assert ids(store) == (["child"] if naive else ["root", "child"])


def test_a_tree_with_a_run_that_is_being_resumed_stays(store: Store) -> None:
    failed_tree(store)
    with open_transaction(store) as resuming:
        resuming.execute("select from durable.run where id = 'child' for no key update")

        assert prune(store) == 0

    assert ids(store) == ["root", "child"]


def test_who_resumes_a_run_that_was_just_pruned_finds_nothing(store: Store) -> None:
    failed_tree(store)
    with open_transaction(store) as pruning:
        pruning.execute(
            queries.load("keeper")["prune"].encode(), {"age": WEEK, "failed_age": WEEK, "limit": 10}
        )
        resuming = background(lambda: resume(store, "child"))
        wait_until_blocked(store)

    resuming.result(10)
    assert ids(store) == []
    assert orphan_rows(store) == {"checkpoint": 0, "attempt": 0, "event": 0}


@pytest.mark.parametrize(
    ("failed_age", "left"),
    [(timedelta(days=1), ["root", "child"]), (timedelta(days=30), ["root", "child", "failed"])],
)
def test_failed_runs_may_be_kept_for_another_time_and_a_tree_for_the_longest(
    store: Store, failed_age: timedelta, left: list[str]
) -> None:
    worker = Worker(store)
    over(worker, "root")
    worker.fail(worker.start("child", root="root"))
    execute(store, "update durable.run set finished_at = finished_at - interval '3 days'")
    worker.fail(worker.start("failed"))
    execute(store, "update durable.run set finished_at = finished_at - interval '3 days' where id = 'failed'")
    if failed_age > WEEK:
        over(worker, "old")
        execute(store, "update durable.run set finished_at = finished_at - interval '8 days'")

    assert store.prune(WEEK, failed_age=failed_age) == 1
    assert ids(store) == left


def test_a_late_message_does_not_bring_a_pruned_run_back(store: Store) -> None:
    """The claim says that there is no such run; a message that says there was one is then dropped."""
    worker = Worker(store)
    over(worker, "old")
    move_clock(store, "8 days")
    prune(store)

    outcome = store.runs.claim("old", fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)

    assert outcome is Refusal.UNKNOWN
    assert ids(store) == []


def test_an_id_used_again_after_its_run_was_pruned_has_no_history(store: Store) -> None:
    worker = Worker(store)
    over(worker, "daily")
    move_clock(store, "8 days")
    prune(store)

    worker.enqueue("daily")
    outcome = store.runs.claim("daily", fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)

    assert isinstance(outcome, tuple)
    assert (outcome[0].attempt, outcome[1]) == (1, [])


def test_forgetting_a_result_deletes_a_run_that_is_over_and_leaves_one_that_is_not(store: Store) -> None:
    worker = Worker(store)
    over(worker, "old")
    worker.start("running")

    store.results.forget("old")
    store.results.forget("running")

    assert ids(store) == ["running"]
    assert orphan_rows(store) == {"checkpoint": 0, "attempt": 0, "event": 0}


def test_retention_deletes_batch_by_batch_until_nothing_old_is_left(store: Store) -> None:
    worker = Worker(store)
    for number in range(7):
        over(worker, f"run {number}")
    execute(store, "update durable.run set finished_at = finished_at - interval '8 days'")

    assert prune_all(store, result_expires=None) == 0, "nobody asked for it"
    assert prune_all(store, result_expires=WEEK.total_seconds()) == 7


def test_plain_results_expire_by_their_own_age(store: Store) -> None:
    for task in ("old", "young"):
        store.results.store(task, "SUCCESS", b"1", "application/json", None, None)
    store.results.save_group("group", b"[]", "application/json")
    execute(
        store, "update durable.result set date_done = date_done - interval '8 days' where task_id = 'old'"
    )
    execute(store, "update durable.result_group set date_done = date_done - interval '8 days'")

    assert store.results.expire(WEEK) == {"results": 1, "groups": 1}
    assert [row["task_id"] for row in store.results.get(["old", "young"])] == ["young"]
