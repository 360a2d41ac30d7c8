"""Who is alive, who leads, and whose runs are taken over."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from contending import background, in_transaction, keeper, move_clock, stalled, together, wait_until_blocked
from inspecting import Worker, execute, open_transaction

from celery_durable.exceptions import LeaseLostError
from celery_durable.run import Refusal, RunState
from celery_durable.store.runs import Finish, Release

if TYPE_CHECKING:
    from celery_durable.run import Claim
    from celery_durable.store import Store
    from celery_durable.store.keeping import Recovered

NOW = timedelta(0)
LEASE = timedelta(minutes=1)


def lead(store: Store, worker: Worker, lease: timedelta = LEASE) -> int | None:
    with keeper(store) as statements:
        return statements.lead(worker.token, lease).term


def beat(store: Store, worker: Worker) -> bool | None:
    with keeper(store) as statements:
        return statements.beat(worker.token, reserved=0)


def bury(store: Store, term: int | None, *workers: Worker) -> list[int]:
    assert term is not None
    with keeper(store) as statements:
        beats = statements.lead(uuid.uuid4(), LEASE).beats
        return statements.bury(term, {worker.id: beats[worker.id] for worker in workers})


def recover(store: Store, term: int | None, *, max_recoveries: int = 3, limit: int = 10) -> list[Recovered]:
    assert term is not None
    with keeper(store) as statements:
        return statements.recover_orphans(
            term, limit=limit, max_recoveries=max_recoveries, result=b"exhausted", result_type="json"
        )


def ids(recovered: list[Recovered]) -> list[str]:
    return [run.id for run in recovered]


def state(store: Store, claim: Claim) -> str:
    (row,) = execute(store, "select state from durable.run where key = %s", claim.key)
    return str(row["state"])


def test_a_worker_that_was_buried_beats_no_more_and_comes_back_as_another(store: Store) -> None:
    leader, worker = Worker(store), Worker(store)
    claim = worker.start()
    term = lead(store, leader)
    assert beat(store, worker) is False

    assert bury(store, term, worker) == [worker.id]

    assert beat(store, worker) is None
    with keeper(store) as statements:
        again = statements.register(worker.token, hostname="worker@one", pid=100, version="0")
    assert again != worker.id
    assert beat(store, worker) is False
    assert ids(recover(store, term)) == [claim.id], "what it owned under its old id is an orphan"


def test_registering_twice_after_a_lost_answer_is_one_worker(store: Store) -> None:
    worker = Worker(store)
    with keeper(store) as statements:
        again = statements.register(worker.token, hostname="worker@one", pid=100, version="0")

    assert again == worker.id


def test_a_worker_that_beat_since_it_was_judged_is_not_buried(store: Store) -> None:
    leader, worker = Worker(store), Worker(store)
    term = lead(store, leader)
    with keeper(store) as statements:
        seen = statements.lead(leader.token, LEASE).beats
        beat(store, worker)

        assert statements.bury(term or 0, {worker.id: seen[worker.id]}) == []


def test_a_burial_that_waits_for_a_beat_sees_it(store: Store) -> None:
    leader, worker = Worker(store), Worker(store)
    term = lead(store, leader)
    with open_transaction(store) as beating:
        beating.execute("update durable.worker set beat = beat + 1 where id = %s", (worker.id,))
        burying = background(lambda: bury(store, term, worker))
        wait_until_blocked(store)

    assert burying.result(10) == []


def test_recovery_takes_the_runs_of_buried_workers_only(store: Store) -> None:
    leader, dead, alive = Worker(store), Worker(store), Worker(store)
    orphans = [dead.start() for _ in range(3)]
    kept = alive.start()
    term = lead(store, leader)
    assert recover(store, term) == []
    bury(store, term, dead)

    assert sorted(ids(recover(store, term, limit=2)) + ids(recover(store, term))) == sorted(
        claim.id for claim in orphans
    )

    assert state(store, kept) == "running"
    assert recover(store, term) == []
    (row,) = execute(store, "select distinct state, recoveries from durable.run where recoveries > 0")
    assert row == {"state": "pending", "recoveries": 1}
    assert len(execute(store, "select kind from durable.event where kind = 'recovered'")) == 3


ONE_OFF = """
with gone as (delete from durable.worker where id = %(worker)s returning id)
update durable.run r set state = 'pending', due = now(), worker = null, pid = null, fence = gen_random_uuid()
from gone where r.worker = gone.id and r.state = 'running'
returning r.id
"""


def test_recovery_at_the_burial_alone_misses_the_claim_that_was_on_its_way(store: Store) -> None:
    """The naive way, and what the repeated anti-join finds after it."""
    leader, worker = Worker(store), Worker(store)
    run_id = worker.enqueue()
    with in_transaction(store) as claiming:
        claiming.claim(run_id, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)
        with store.connections.dedicated() as naive:
            assert naive.execute(ONE_OFF.encode(), {"worker": worker.id}).fetchall() == []
        assert recover(store, lead(store, leader)) == []

    assert ids(recover(store, lead(store, leader))) == [run_id]


FIRST_SIGHT = """
with orphan as (
    select r.key from durable.run r
    where r.state = 'running' and not exists (select from durable.worker w where w.id = r.worker)
      and durable.clock() is not null
    order by r.key for update of r skip locked
)
update durable.run r set state = 'pending', due = now(), worker = null, pid = null, fence = gen_random_uuid()
from orphan where r.key = orphan.key
returning r.id
"""


@pytest.mark.parametrize("naive", [False, True])
def test_recovery_leaves_a_run_that_a_live_worker_claimed_while_it_was_looking(
    store: Store, *, naive: bool
) -> None:
    """The row changed between snapshot and lock: Postgres does not repeat an anti-join for it."""
    leader, dead, alive = Worker(store), Worker(store), Worker(store)
    claim = dead.start()
    term = lead(store, leader)
    bury(store, term, dead)

    def look(slow: Store) -> list[str]:
        if not naive:
            return ids(recover(slow, term))
        with slow.connections.dedicated() as connection:
            return [row["id"] for row in connection.execute(FIRST_SIGHT.encode()).fetchall()]

    with stalled(store) as start:
        looking = start(look)
        store.runs.release(claim.key, claim.fence, Release("released", NOW))
        second = alive.claim(claim.id)

    assert looking.result(10) == ([claim.id] if naive else [])
    if not naive:
        store.runs.finish(second.key, second.fence, Finish(RunState.SUCCEEDED))


def test_recovery_does_not_wait_for_runs_that_somebody_holds(store: Store) -> None:
    leader, dead = Worker(store), Worker(store)
    held, free = dead.start(), dead.start()
    term = lead(store, leader)
    bury(store, term, dead)

    with open_transaction(store) as holder:
        holder.execute("select from durable.run where key = %s for no key update", (held.key,))
        assert ids(recover(store, term)) == [free.id]

    assert ids(recover(store, term)) == [held.id]


def test_a_run_that_keeps_losing_its_worker_is_exhausted_and_its_callers_are_still_to_be_told(
    store: Store,
) -> None:
    leader = Worker(store)
    run_id = leader.enqueue()
    term = lead(store, leader)
    for _ in range(3):
        dead = Worker(store)
        dead.claim(run_id)
        bury(store, term, dead)
        (recovered,) = recover(store, term, max_recoveries=2)

    assert (recovered.state, recovered.recoveries) == ("failed", 3)
    assert execute(store, "select state, reason, result, unreported from durable.run") == [
        {"state": "failed", "reason": "exhausted", "result": b"exhausted", "unreported": True}
    ]
    assert [row["outcome"] for row in execute(store, "select outcome from durable.attempt")] == ["lost"] * 3


def test_an_orphan_that_somebody_wants_to_stop_is_cancelled(store: Store) -> None:
    leader, dead = Worker(store), Worker(store)
    claim = dead.start()
    store.inspection.cancel([claim.id], operation=uuid.uuid4(), actor="ada", reason=None)
    term = lead(store, leader)
    bury(store, term, dead)

    assert [run.state for run in recover(store, term)] == ["cancelled"]


def test_a_worker_that_ends_cleanly_hands_on_its_runs_at_once_without_a_recovery(store: Store) -> None:
    worker, other = Worker(store), Worker(store)
    claim, kept = worker.start(), other.start()

    with keeper(store) as statements:
        assert statements.retire(worker.token) == [claim.id]
        assert statements.retire(worker.token) == []

    assert (state(store, claim), state(store, kept)) == ("pending", "running")
    assert execute(store, "select recoveries, published_at from durable.run where state = 'pending'") == [
        {"recoveries": 0, "published_at": None}
    ]
    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED))


def test_a_clean_end_waits_for_the_checkpoint_that_is_being_stored(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    with in_transaction(store) as finishing:
        finishing.finish(claim.key, claim.fence, Finish(RunState.SUCCEEDED))

        def retire() -> list[str]:
            with keeper(store) as statements:
                return statements.retire(worker.token)

        retiring = background(retire)
        wait_until_blocked(store)

    assert retiring.result(10) == []
    assert state(store, claim) == "succeeded"


def test_one_of_many_becomes_the_leader(store: Store) -> None:
    workers = [Worker(store, f"worker@{number}") for number in range(4)]

    terms = together(*(lambda w=worker: lead(store, w) for worker in workers))

    assert sorted(terms, key=str) == [1, None, None, None]


def test_a_leader_renews_its_term_and_a_new_leader_opens_the_next(store: Store) -> None:
    first, second = Worker(store), Worker(store)

    assert [lead(store, first), lead(store, first), lead(store, second)] == [1, 1, None]
    move_clock(store, "2 minutes")
    assert [lead(store, second), lead(store, first)] == [2, None]


def test_the_lease_of_a_leader_whose_worker_ended_is_free(store: Store) -> None:
    first, second, third = Worker(store), Worker(store), Worker(store)
    lead(store, first)
    with keeper(store) as statements:
        statements.retire(first.token)
    assert lead(store, second) == 1, "a clean end gives the lease back"
    second.vanish()

    assert lead(store, third) == 2


def test_who_has_no_row_cannot_lead(store: Store) -> None:
    worker = Worker(store)
    worker.vanish()

    assert lead(store, worker) is None


def test_what_a_former_leader_writes_does_nothing(store: Store) -> None:
    former, leader, dead = Worker(store), Worker(store), Worker(store)
    dead.start()
    old = lead(store, former)
    move_clock(store, "2 minutes")
    new = lead(store, leader)

    assert bury(store, old, dead) == []
    dead.vanish()
    assert recover(store, old) == []
    with keeper(store) as statements:
        assert not statements.look(old or 0).leading
        assert statements.look(new or 0).leading
    assert len(recover(store, new)) == 1


def test_a_leader_that_slept_past_its_lease_writes_nothing(store: Store) -> None:
    leader, dead = Worker(store), Worker(store)
    dead.start()
    term = lead(store, leader)
    dead.vanish()
    move_clock(store, "2 minutes")

    assert recover(store, term) == []
    with keeper(store) as statements:
        assert not statements.look(term or 0).leading


def test_beats_touch_no_run(store: Store) -> None:
    """Heartbeats of a thousand runs cost one row: nothing of a run changes its version."""
    worker = Worker(store)
    worker.start()
    before = execute(store, "select xmin::text, ctid::text from durable.run")

    beat(store, worker)

    assert execute(store, "select xmin::text, ctid::text from durable.run") == before


def test_a_claim_for_a_worker_that_ended_is_refused_while_it_waits(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    with keeper(store) as statements:
        statements.retire(worker.token)

    outcome = store.runs.claim(run_id, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)

    assert outcome is Refusal.NO_WORKER
