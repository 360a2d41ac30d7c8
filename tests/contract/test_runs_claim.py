"""Who gets a run, and what of its past they see."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import (
    altered,
    background,
    in_transaction,
    keeper,
    move_clock,
    stalled,
    step_write,
    together,
    wait_until_blocked,
)
from inspecting import Worker, execute

from celery_durable.exceptions import StoreError
from celery_durable.run import Claim, Refusal
from celery_durable.store import queries
from celery_durable.store.runs import Release

if TYPE_CHECKING:
    from celery_durable.checkpoint import Checkpoint
    from celery_durable.store import Store
    from celery_durable.store.runs import RunStore

NOW = timedelta(0)
JUDGED_BY_SUBQUERY = (
    "where r.id = %(id)s and",
    "where r.key = (select key from durable.run where id = %(id)s and state = 'pending') and",
)
WITHOUT_OWN_FENCE = (
    "(r.state = 'pending' or (r.state in ('running', 'cancelling') and r.fence = %(fence)s))",
    "r.state = 'pending'",
)
STATE_BY_SUBQUERY = (WITHOUT_OWN_FENCE, JUDGED_BY_SUBQUERY, ("r.state = 'pending'\n", "true\n"))


def claimed(
    runs: RunStore, worker: Worker, run_id: str, fence: uuid.UUID | None = None, **options: Any
) -> tuple[Claim, list[Checkpoint]] | Refusal:
    given: dict[str, Any] = {"pid": 7, "revision": 0, **options}
    return runs.claim(run_id, fence=fence or uuid.uuid4(), token=worker.token, **given)


def test_of_two_claims_at_once_one_gets_the_run(store: Store) -> None:
    workers = [Worker(store, f"worker@{number}") for number in range(2)]
    for _ in range(20):
        run_id = workers[0].enqueue()

        first, second = together(
            *(lambda w=w, run_id=run_id: claimed(store.runs, w, run_id) for w in workers)
        )

        assert sorted(isinstance(outcome, Refusal) for outcome in (first, second)) == [False, True]
        assert Refusal.OWNED in (first, second)


@pytest.mark.parametrize("naive", [False, True])
def test_a_claim_that_waited_for_another_judges_the_run_as_that_one_left_it(
    store: Store, *, naive: bool
) -> None:
    first, second = Worker(store), Worker(store)
    run_id = first.enqueue()
    runs = altered(store, "claim", *STATE_BY_SUBQUERY) if naive else store.runs

    with in_transaction(store) as open_runs:
        claimed(open_runs, first, run_id)
        later = background(lambda: claimed(runs, second, run_id))
        wait_until_blocked(store)

    outcome = later.result(10)
    assert isinstance(outcome, tuple) if naive else outcome is Refusal.OWNED


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("still_committing", [False, True])
def test_a_claim_repeated_after_its_answer_was_lost_is_the_same_attempt(
    store: Store,
    *,
    still_committing: bool,
    naive: bool,
) -> None:
    worker, fence = Worker(store), uuid.uuid4()
    run_id = worker.enqueue()
    runs = altered(store, "claim", WITHOUT_OWN_FENCE) if naive else store.runs

    with in_transaction(store) as lost:
        claimed(lost, worker, run_id, fence)
        if still_committing:
            later = background(lambda: claimed(runs, worker, run_id, fence))
            wait_until_blocked(store)
    outcome = later.result(10) if still_committing else claimed(runs, worker, run_id, fence)

    if naive:
        assert outcome is Refusal.OWNED
        return
    assert isinstance(outcome, tuple)
    assert (outcome[0].attempt, outcome[0].fence) == (1, fence)
    assert execute(store, "select number, fence from durable.attempt") == [{"number": 1, "fence": fence}]


def claim_and_history_as_one_statement(runs: RunStore, worker: Worker, run_id: str) -> list[str]:
    """A claim that reads the history with the snapshot it took before it got the lock."""
    claim = queries.load("runs")["claim"].partition("\n)\nselect")[0]
    sql = f"{claim}\n) select c.key from claimed join durable.checkpoint c on c.run_key = claimed.key"
    parameters = {"id": run_id, "task": None, "fence": uuid.uuid4(), "token": worker.token, "pid": 7}
    rows = runs._connections.once(lambda connection: connection.execute(sql, parameters).fetchall())
    return [row["key"] for row in rows]


@pytest.mark.parametrize("naive", [False, True])
def test_the_history_is_younger_than_the_lock_of_the_claim(store: Store, *, naive: bool) -> None:
    """An attempt began, stored a step and left while the next claim was waiting for the row."""
    first, second = Worker(store), Worker(store)
    run_id = first.enqueue()

    def next_claim() -> list[str]:
        if naive:
            return claim_and_history_as_one_statement(store.runs, second, run_id)
        outcome = claimed(store.runs, second, run_id)
        assert isinstance(outcome, tuple)
        return [step.key for step in outcome[1]]

    with in_transaction(store) as open_runs:
        before = claimed(open_runs, first, run_id)
        assert isinstance(before, tuple)
        later = background(next_claim)
        wait_until_blocked(store)
        open_runs.checkpoint(before[0].key, before[0].fence, step_write("download", 1))
        open_runs.release(before[0].key, before[0].fence, Release("released", NOW))

    assert later.result(10) == ([] if naive else ["download"])


def test_the_history_holds_every_step_in_the_order_of_the_calls(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    for seq, key in enumerate(["b", "a", "c"], 1):
        worker.step(claim, key, seq)
    worker.step(claim, "d", 4, "started")
    store.runs.release(claim.key, claim.fence, Release("released", NOW))

    outcome = claimed(store.runs, worker, claim.id)

    assert isinstance(outcome, tuple)
    assert [(step.key, step.outcome) for step in outcome[1]] == [
        ("b", "ok"),
        ("a", "ok"),
        ("c", "ok"),
        ("d", "started"),
    ]
    assert outcome[0].attempt == 2


def test_a_claim_that_is_refused_says_why(store: Store) -> None:
    worker = Worker(store)

    assert claimed(store.runs, worker, str(uuid.uuid4())) is Refusal.UNKNOWN
    assert claimed(store.runs, worker, worker.start().id) is Refusal.OWNED
    assert claimed(store.runs, worker, worker.succeed(worker.start())) is Refusal.FINAL
    assert claimed(store.runs, worker, worker.retry(worker.start())) is Refusal.WAITING
    assert claimed(store.runs, worker, worker.enqueue(countdown=timedelta(hours=1))) is Refusal.WAITING
    assert claimed(store.runs, worker, worker.enqueue(expires=timedelta(seconds=-1))) is Refusal.EXPIRED


def test_an_attempt_of_a_worker_that_was_declared_dead_claims_nothing_until_it_begins_anew(
    store: Store,
) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    worker.vanish()

    assert claimed(store.runs, worker, run_id) is Refusal.NO_WORKER
    assert claimed(store.runs, worker, str(uuid.uuid4())) is Refusal.NO_WORKER

    with keeper(store) as statements:
        new_id = statements.register(worker.token, hostname="worker@one", pid=100, version="0")
    assert new_id != worker.id
    assert isinstance(claimed(store.runs, worker, run_id), tuple)


def test_a_claim_that_was_on_its_way_when_its_worker_was_buried_is_found_by_the_next_recovery(
    store: Store,
) -> None:
    worker, leader = Worker(store), Worker(store)
    run_id = worker.enqueue(expires=timedelta(hours=1))
    with stalled(store) as start:
        claim = start(lambda slow: claimed(slow.runs, worker, run_id))
        worker.vanish()
        with keeper(store) as statements:
            term = statements.lead(leader.token, timedelta(minutes=1)).term
            assert recovered(store, term) == []

    assert isinstance(claim.result(10), tuple)
    assert recovered(store, term) == [run_id]


def recovered(store: Store, term: int | None) -> list[str]:
    assert term is not None
    with keeper(store) as statements:
        found = statements.recover_orphans(term, limit=10, max_recoveries=3, result=b"", result_type="json")
    return [run.id for run in found]


def test_a_run_expires_only_while_nobody_has_ever_claimed_it(store: Store) -> None:
    worker = Worker(store)
    never, once = (worker.enqueue(expires=timedelta(minutes=1)) for _ in range(2))
    claim = worker.claim(once)
    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    move_clock(store, "1 hour")

    assert claimed(store.runs, worker, never) is Refusal.EXPIRED
    assert isinstance(claimed(store.runs, worker, once), tuple)
    assert execute(store, "select state, reason from durable.run where id = %s", never) == [
        {"state": "cancelled", "reason": "expired"}
    ]


def test_the_stored_arguments_come_with_the_claim_only_where_the_message_has_older_ones(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start(body=b"old", message=b"{}")
    assert claim.body is None
    release = Release("retry", NOW, body=b"new", message=b'{"new": 1}')
    store.runs.release(claim.key, claim.fence, release)

    outcome = claimed(store.runs, worker, claim.id, revision=0)

    assert isinstance(outcome, tuple)
    assert (outcome[0].revision, outcome[0].body, outcome[0].message) == (1, b"new", b'{"new": 1}')


def test_a_database_whose_transactions_keep_one_snapshot_is_refused_at_the_first_use(store: Store) -> None:
    """Under repeatable read the history would be as old as the claim's first look at the row."""
    (name,) = (row["name"] for row in execute(store, "select current_database() as name"))
    execute(store, f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    worker = Worker(store)

    with pytest.raises(
        StoreError, match=r"alter role .* set default_transaction_isolation = 'read committed'"
    ):
        worker.enqueue()
