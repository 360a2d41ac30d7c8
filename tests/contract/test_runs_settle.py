"""How an attempt ends its run or leaves it: by one write that counts once, whoever else is writing."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from contending import altered, background, in_transaction, keeper, wait_until_blocked
from inspecting import Worker, execute

from celery_durable.exceptions import LeaseLostError
from celery_durable.run import RunState
from celery_durable.store.runs import Finish, NewRun, PlainMessage, Release, closed

if TYPE_CHECKING:
    from celery_durable.run import Claim
    from celery_durable.store import Store
    from celery_durable.store.runs import RunStore

NOW = timedelta(0)
LATER = timedelta(minutes=5)
SUCCESS = Finish(RunState.SUCCEEDED, b"1", "application/json")
FAILURE = Finish(RunState.FAILED, b"{}", "application/json", error="ValueError: no")
RETRY = Release("retry", LATER, "retry", retries=1, error="ValueError: no", discard="errors")


def row(store: Store, run_id: str) -> dict[str, object]:
    (found,) = execute(
        store, "select state, reason, result, retries, worker from durable.run where id = %s", run_id
    )
    return found


def outcomes(store: Store) -> list[object]:
    rows = execute(store, "select outcome from durable.attempt order by run_key, number")
    return [attempt["outcome"] for attempt in rows]


def link(run_id: str) -> NewRun:
    return NewRun(id=run_id, task="media.publish", queue="celery", priority=None, message=b"{}", body=b"[]")


def recover(store: Store, worker: Worker) -> list[str]:
    leader = Worker(store, "leader@one")
    with keeper(store) as statements:
        term = statements.lead(leader.token, timedelta(minutes=1)).term
        assert term is not None
        execute(store, "delete from durable.worker where id = %s", worker.id)
        found = statements.recover_orphans(term, limit=10, max_recoveries=3, result=b"", result_type="json")
        statements.retire(leader.token)
    return [run.id for run in found]


@pytest.mark.parametrize("still_committing", [False, True])
@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE])
def test_a_finish_repeated_after_its_answer_was_lost_is_the_same_finish(
    store: Store, *, outcome: Finish, still_committing: bool
) -> None:
    claim = Worker(store).start()

    def repeat() -> list[str | None]:
        return store.runs.finish(claim.key, claim.fence, outcome).links

    with in_transaction(store) as lost:
        lost.finish(claim.key, claim.fence, outcome)
        if still_committing:
            repeated = background(repeat)
            wait_until_blocked(store)
    assert (repeated.result(10) if still_committing else repeat()) == []

    assert row(store, claim.id)["state"] == outcome.state
    assert outcomes(store) == [outcome.state]


@pytest.mark.parametrize("naive", [False, True])
def test_the_first_final_state_of_a_run_stays(store: Store, *, naive: bool) -> None:
    claim = Worker(store).start()
    runs = (
        altered(store, "finish", (" and state in ('running', 'cancelling', %(state)s)", ""))
        if naive
        else store.runs
    )
    runs.finish(claim.key, claim.fence, SUCCESS)

    if naive:
        runs.finish(claim.key, claim.fence, FAILURE)
        assert row(store, claim.id)["state"] == "failed"
        return
    with pytest.raises(LeaseLostError):
        runs.finish(claim.key, claim.fence, FAILURE)
    with pytest.raises(LeaseLostError):
        runs.release(claim.key, claim.fence, RETRY)
    assert row(store, claim.id)["state"] == "succeeded"
    assert store.runs.revoke(claim.id, token=None, terminated=False) is False


def test_a_finish_that_locks_first_ends_the_run_and_recovery_finds_nothing(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()

    with in_transaction(store) as finishing:
        finishing.finish(claim.key, claim.fence, SUCCESS)
        assert recover(store, worker) == []

    assert recover(store, worker) == []
    assert row(store, claim.id)["state"] == "succeeded"


def test_a_finish_that_comes_after_the_recovery_is_refused(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    assert recover(store, worker) == [claim.id]

    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, SUCCESS)

    assert row(store, claim.id) == {
        "state": "pending",
        "reason": None,
        "result": None,
        "retries": 0,
        "worker": None,
    }
    assert outcomes(store) == ["lost"]


def test_a_finish_that_waits_for_the_recovery_of_its_run_is_refused(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()

    with in_transaction(store) as main_process:
        (pid,) = execute(store, "select pid from durable.run")
        main_process.recover_child(
            claim.id,
            token=worker.token,
            pid=pid["pid"],
            error="signal 9",
            max_recoveries=3,
            result=b"",
            result_type="json",
            budget=1,
        )
        finishing = background(lambda: store.runs.finish(claim.key, claim.fence, SUCCESS))
        wait_until_blocked(store)

    assert isinstance(finishing.exception(10), LeaseLostError)
    assert row(store, claim.id)["state"] == "pending"


def test_a_success_that_locks_first_wins_over_a_cancel(store: Store) -> None:
    claim = Worker(store).start()

    with in_transaction(store) as finishing:
        finishing.finish(claim.key, claim.fence, SUCCESS)
        cancelling = background(
            lambda: store.inspection.cancel([claim.id], operation=uuid.uuid4(), actor="ada", reason=None)
        )
        wait_until_blocked(store)

    assert [change.changed for change in cancelling.result(10)] == [False]
    assert row(store, claim.id)["state"] == "succeeded"


def test_a_success_that_comes_after_a_cancel_still_wins_as_a_cancel_is_a_request(store: Store) -> None:
    claim = Worker(store).start()
    store.inspection.cancel([claim.id], operation=uuid.uuid4(), actor="ada", reason=None)

    store.runs.finish(claim.key, claim.fence, SUCCESS)

    assert row(store, claim.id)["state"] == "succeeded"


def test_a_retry_that_meets_a_cancel_ends_the_run_instead(store: Store) -> None:
    claim = Worker(store).start()
    store.inspection.cancel([claim.id], operation=uuid.uuid4(), actor="ada", reason=None)

    assert store.runs.release(claim.key, claim.fence, RETRY) is RunState.CANCELLED
    assert row(store, claim.id)["reason"] == "cancelled"


def test_links_are_stored_with_the_finish_or_not_at_all(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    links = [link("chain-1"), PlainMessage("plain-1", b"{}", b"[]")]

    states = store.runs.finish(claim.key, claim.fence, SUCCESS, links).links

    assert states[0] == "pending"
    assert execute(store, "select id from durable.run where id <> %s", claim.id) == [{"id": "chain-1"}]
    assert execute(store, "select id from durable.outbox") == [{"id": "plain-1"}]


@pytest.mark.parametrize("naive", [False, True])
def test_a_superseded_attempt_starts_no_link(store: Store, *, naive: bool) -> None:
    worker = Worker(store)
    claim = worker.start()
    recover(store, worker)
    links = [link("chain-1"), PlainMessage("plain-1", b"{}", b"[]")]
    runs = store.runs
    if naive:
        runs = altered(store, "enqueue", ("where %(holder)s::bigint is null or", "where true or"))

    with pytest.raises(LeaseLostError):
        runs.finish(claim.key, claim.fence, SUCCESS, links)

    stored = execute(store, "select id from durable.run where id <> %s", claim.id)
    assert stored == ([{"id": "chain-1"}] if naive else [])
    assert execute(store, "select id from durable.outbox") == []


@pytest.mark.parametrize("still_committing", [False, True])
def test_links_of_a_repeated_finish_are_stored_once(store: Store, *, still_committing: bool) -> None:
    claim = Worker(store).start()

    def finish(runs: RunStore) -> list[str | None]:
        return runs.finish(claim.key, claim.fence, SUCCESS, [link("chain-1"), link("chain-2")]).links

    with in_transaction(store) as lost:
        finish(lost)
        if still_committing:
            repeated = background(lambda: finish(store.runs))
            wait_until_blocked(store)
    answer = repeated.result(10) if still_committing else finish(store.runs)

    assert len(answer) == 2
    assert execute(store, "select id from durable.run where id <> %s order by id", claim.id) == [
        {"id": "chain-1"},
        {"id": "chain-2"},
    ]


def test_a_link_whose_id_is_taken_is_left_as_it_is(store: Store) -> None:
    worker = Worker(store)
    known = worker.start("chain-1")
    claim = worker.start()

    assert store.runs.finish(claim.key, claim.fence, SUCCESS, [link("chain-1")]).links == [None]
    assert row(store, known.id)["state"] == "running"


OWN_WRITE = """
select coalesce(released.state, mine.state) as state
from mine left join released on released.key = mine.key
where released.key is not null or mine.fence = %(closed)s
"""
OWN_WRITE_IN_AN_OLD_SNAPSHOT = """
select state from released
union all
select state from durable.run where key = %(run)s and fence = %(closed)s and not exists (select from released)
"""
NAIVE_RELEASE = (
    ("and fence in (%(fence)s, %(closed)s)\n    for no key update", "and fence = %(fence)s"),
    (
        "and mine.fence = %(fence)s and mine.state in ('running', 'cancelling')",
        "and r.fence = %(fence)s and r.state = 'running'",
    ),
    (OWN_WRITE.strip(), OWN_WRITE_IN_AN_OLD_SNAPSHOT),
)


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("still_committing", [False, True])
@pytest.mark.parametrize(
    "release", [RETRY, Release("released", NOW), Release("suspended", NOW, publish=True)]
)
def test_a_release_repeated_after_its_answer_was_lost_recognises_itself(
    store: Store, *, release: Release, still_committing: bool, naive: bool
) -> None:
    """The naive one looks for its own earlier write with the snapshot it took before it waited for it."""
    claim = Worker(store).start()
    runs = altered(store, "release", *NAIVE_RELEASE) if naive else store.runs

    def repeat() -> RunState:
        return runs.release(claim.key, claim.fence, release)

    with in_transaction(store) as lost:
        first = lost.release(claim.key, claim.fence, release)
        if still_committing:
            repeated = background(repeat)
            wait_until_blocked(store)

    if naive and still_committing:
        assert isinstance(repeated.exception(10), LeaseLostError)
    else:
        assert (repeated.result(10) if still_committing else repeat()) is first
    assert row(store, claim.id)["retries"] == (release.retries or 0)
    assert outcomes(store) == [release.outcome]


def test_a_release_repeated_after_the_next_claim_leaves_the_new_attempt_alone(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    second = worker.claim(claim.id)

    with pytest.raises(LeaseLostError):
        store.runs.release(claim.key, claim.fence, Release("released", NOW))

    store.runs.finish(second.key, second.fence, SUCCESS)
    assert outcomes(store) == ["released", "succeeded"]


def test_no_write_of_an_attempt_is_stored_after_its_release(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, RETRY)

    for fence in (claim.fence, closed(claim.fence)):
        with pytest.raises(LeaseLostError):
            store.runs.finish(claim.key, fence, SUCCESS)
        with pytest.raises(LeaseLostError):
            store.runs.update_state(claim.key, fence, "PROGRESS", b"1", "json")
        with pytest.raises(LeaseLostError):
            store.runs.annotate(claim.key, fence, tags=None, progress="1")
    assert row(store, claim.id)["state"] == "waiting"


def test_leaving_a_worker_is_due_now_and_a_retry_when_its_delay_is_over(store: Store) -> None:
    worker = Worker(store)
    for release, state, published in (
        (Release("released", NOW), RunState.PENDING, False),
        (Release("suspended", NOW, publish=True), RunState.PENDING, True),
        (RETRY, RunState.WAITING, False),
    ):
        claim = worker.start()
        assert store.runs.release(claim.key, claim.fence, release) is state
        (left,) = execute(
            store,
            "select due - now() as wait, published_at is not null as published from durable.run"
            " where id = %s",
            claim.id,
        )
        assert left["published"] is published
        assert (left["wait"] > timedelta(minutes=4)) is (state is RunState.WAITING)


def test_only_the_child_recorded_at_the_claim_can_lose_its_run(store: Store) -> None:
    worker, other = Worker(store), Worker(store)
    claim = worker.start()
    (pid,) = (found["pid"] for found in execute(store, "select pid from durable.run"))

    def lost(owner: Worker, child: int) -> object:
        return store.runs.recover_child(
            claim.id,
            token=owner.token,
            pid=child,
            error="signal 9",
            max_recoveries=3,
            result=b"",
            result_type="json",
            budget=1,
        )

    assert lost(worker, pid + 1) is None
    assert lost(other, pid) is None
    assert row(store, claim.id)["state"] == "running"
    assert lost(worker, pid) is not None
    assert lost(worker, pid) is None
    assert execute(store, "select recoveries from durable.run") == [{"recoveries": 1}]


def test_a_run_whose_recoveries_are_used_up_fails_as_exhausted(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    for recoveries in range(1, 4):
        worker.claim(run_id)
        (pid,) = (found["pid"] for found in execute(store, "select pid from durable.run"))
        store.runs.recover_child(
            run_id,
            token=worker.token,
            pid=pid,
            error="signal 9",
            max_recoveries=2,
            result=b"exhausted",
            result_type="json",
            budget=1,
        )
        if recoveries < 3:
            execute(store, "update durable.run set due = now()")

    assert row(store, run_id) | {"retries": 0} == {
        "state": "failed",
        "reason": "exhausted",
        "result": b"exhausted",
        "retries": 0,
        "worker": None,
    }


def test_a_worker_releases_what_it_owns_and_does_not_execute_without_counting_a_crash(store: Store) -> None:
    worker, other = Worker(store), Worker(store)
    stray, busy, foreign = worker.start(), worker.start(), other.start()

    assert dict(store.runs.owned(worker.token)) == {stray.id: stray.fence, busy.id: busy.fence}
    strays = [(claim.id, claim.fence) for claim in (stray, foreign)]
    assert store.runs.release_strays(worker.token, strays) == [stray.id]

    assert [row(store, claim.id)["state"] for claim in (stray, busy, foreign)] == [
        "pending",
        "running",
        "running",
    ]
    with pytest.raises(LeaseLostError):
        store.runs.finish(stray.key, stray.fence, SUCCESS)
    assert execute(store, "select distinct recoveries from durable.run") == [{"recoveries": 0}]


def test_a_run_claimed_again_since_it_looked_stray_is_left_alone(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    seen = store.runs.owned(worker.token)
    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    again = worker.claim(claim.id)

    assert store.runs.release_strays(worker.token, seen) == []
    store.runs.finish(again.key, again.fence, SUCCESS)


def test_a_revoke_ends_what_does_not_execute_and_what_its_own_worker_terminated(store: Store) -> None:
    worker, other = Worker(store), Worker(store)
    pending, claim = worker.enqueue(), worker.start()

    assert store.runs.revoke(pending, token=None, terminated=False)
    assert not store.runs.revoke(claim.id, token=worker.token, terminated=False)
    assert not store.runs.revoke(claim.id, token=other.token, terminated=True)
    assert store.runs.revoke(claim.id, token=worker.token, terminated=True)
    assert {str(row(store, run_id)["state"]) for run_id in (pending, claim.id)} == {"cancelled"}
    refused(store, claim)


def refused(store: Store, claim: Claim) -> None:
    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, SUCCESS)
