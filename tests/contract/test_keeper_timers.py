"""Timers, lost messages and expiry, by the database's clock alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import keeper, move_clock, stalled
from inspecting import Worker, execute, open_transaction

from celery_durable.keeper.lost import Evidence, presumed_lost
from celery_durable.run import Refusal

if TYPE_CHECKING:
    from celery_durable.store import Store

HOUR = timedelta(hours=1)
GRACE = timedelta(seconds=5)


def wake(store: Store, limit: int = 100) -> list[str]:
    with keeper(store) as statements:
        return [run.id for run in statements.wake(limit)]


def publishable(store: Store, limit: int = 100) -> list[str]:
    with keeper(store) as statements:
        return [run.id for run in statements.publishable(limit)]


def unclaimed(store: Store) -> list[str]:
    with keeper(store) as statements:
        return [run.id for run in statements.unclaimed(100)]


def row(store: Store, run_id: str) -> dict[str, Any]:
    columns = "state, reason, checks, due - durable.clock() as wait, published_at"
    (found,) = execute(store, f"select {columns} from durable.run where id = %s", run_id)
    return found


def test_a_timer_fires_when_the_databases_clock_says_so_and_not_before(store: Store) -> None:
    worker = Worker(store)
    timer, retry = worker.enqueue(countdown=HOUR), worker.retry(worker.start(), delay=HOUR)
    move_clock(store, "59 minutes 58 seconds")
    assert wake(store) == []

    move_clock(store, "1 hour 1 second")

    assert sorted(wake(store)) == sorted([timer, retry])
    assert wake(store) == []
    assert row(store, timer)["state"] == "pending"
    assert row(store, timer)["published_at"] is not None


def test_a_clock_that_goes_back_delays_timers_and_loses_none(store: Store) -> None:
    timer = Worker(store).enqueue(countdown=HOUR)
    move_clock(store, "-1 day")
    assert wake(store) == []

    move_clock(store, "2 hours")

    assert wake(store) == [timer]


def test_due_timers_are_woken_once_by_any_number_of_keepers(store: Store) -> None:
    worker = Worker(store)
    timers = [worker.enqueue(countdown=HOUR) for _ in range(60)]
    move_clock(store, "2 hours")

    with ThreadPoolExecutor(4) as pool:
        woken = [run_id for batch in pool.map(lambda _: wake(store, 10), range(12)) for run_id in batch]
    woken += wake(store)

    assert sorted(woken) == sorted(timers)


def test_the_keeper_wakes_what_is_due_first_and_passes_by_what_is_held(store: Store) -> None:
    worker = Worker(store)
    late, early, held = (worker.enqueue(countdown=timedelta(minutes=minutes)) for minutes in (30, 20, 10))
    move_clock(store, "1 hour")

    with open_transaction(store) as holder:
        holder.execute("select from durable.run where id = %s for no key update", (held,))
        assert wake(store, 1) == [early]

    assert sorted(wake(store)) == sorted([held, late])


def test_a_timer_that_has_just_come_due_does_not_wait_behind_all_those_before_it(store: Store) -> None:
    worker = Worker(store)
    crowd = [worker.enqueue(countdown=timedelta(minutes=1)) for _ in range(30)]
    single = worker.enqueue(countdown=HOUR)
    move_clock(store, "2 hours")

    first = wake(store, 10)

    assert single in first
    assert len(first) == 10
    assert sorted([*first, *wake(store, 10), *wake(store, 10), *wake(store, 10)]) == sorted([*crowd, single])
    assert wake(store, 10) == []


def test_a_timer_that_was_cancelled_while_the_keeper_was_looking_stays_cancelled(store: Store) -> None:
    timer = Worker(store).enqueue(countdown=HOUR)
    execute(store, "update durable.run set due = now() - interval '1 s'")

    with stalled(store) as start:
        waking = start(wake)
        assert store.runs.revoke(timer, token=None, terminated=False)

    assert waking.result(10) == []
    assert row(store, timer)["state"] == "cancelled"


def test_the_leader_sleeps_until_the_next_timer(store: Store) -> None:
    worker = Worker(store)
    with keeper(store) as statements:
        term = statements.lead(worker.token, HOUR).term or 0
        assert statements.look(term).next_timer is None
        worker.enqueue(countdown=timedelta(minutes=10))
        worker.enqueue(countdown=timedelta(minutes=20))
        look = statements.look(term)

    assert look.next_timer is not None
    assert 590 < look.next_timer <= 600
    assert not look.unclaimed
    assert not look.unpublished


def test_the_leader_sees_what_there_is_to_do(store: Store) -> None:
    worker = Worker(store)
    worker.enqueue(publish=False)
    worker.enqueue()
    move_clock(store, "31 seconds")

    with keeper(store) as statements:
        look = statements.look(statements.lead(worker.token, HOUR).term or 0)

    assert look.unpublished
    assert look.unclaimed
    assert look.leading


def test_a_run_the_broker_does_not_know_of_is_published_once_and_then_watched(store: Store) -> None:
    worker = Worker(store)
    unpublished, published = worker.enqueue(publish=False), worker.enqueue()

    assert publishable(store) == [unpublished]
    assert publishable(store) == []

    assert unclaimed(store) == []
    move_clock(store, "31 seconds")
    assert sorted(unclaimed(store)) == sorted([unpublished, published])


def test_a_run_the_broker_refused_again_is_tried_after_its_pause(store: Store) -> None:
    run_id = Worker(store).enqueue(publish=False)
    with keeper(store) as statements:
        (stored,) = statements.publishable(10)
        statements.unpublish([stored.id], timedelta(seconds=10))
    assert publishable(store) == []

    move_clock(store, "11 seconds")

    assert publishable(store) == [run_id]


def test_a_claimed_run_is_neither_published_nor_looked_for(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start(publish=False)
    move_clock(store, "1 day")

    assert (publishable(store), unclaimed(store), wake(store)) == ([], [], [])
    with keeper(store) as statements:
        statements.unpublish([claim.id], timedelta(0))
    assert publishable(store) == []


def test_each_look_for_a_message_doubles_the_time_to_the_next_one_up_to_a_limit(store: Store) -> None:
    run_id = Worker(store).enqueue()
    waits = []
    for _ in range(11):
        execute(store, "update durable.run set due = durable.clock()")
        with keeper(store) as statements:
            assert statements.recheck({run_id: False}) == []
        waits.append(round(row(store, run_id)["wait"].total_seconds() / 30))

    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 256, 256, 256]


def test_a_message_judged_lost_is_published_by_one_keeper_only(store: Store) -> None:
    run_id = Worker(store).enqueue()
    move_clock(store, "31 seconds")
    before = row(store, run_id)["published_at"]

    with keeper(store) as one, keeper(store) as two:
        verdict = {run_id: True}
        assert [stored.id for stored in one.recheck(verdict)] == [run_id]
        assert two.recheck(verdict) == []

    assert row(store, run_id)["published_at"] > before
    assert row(store, run_id)["checks"] == 1


def test_a_run_claimed_since_it_was_judged_is_not_published_again(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    move_clock(store, "31 seconds")

    with keeper(store) as statements:
        assert [run.id for run in statements.unclaimed(10)] == [run_id]
        worker.claim(run_id)
        assert statements.recheck({run_id: True}) == []


def judged(store: Store, run_id: str, *, empty: bool = False) -> bool:
    """Judge one run as the keeper does, with what the store knows and what a broker would say."""
    with keeper(store) as statements:
        (run,) = (one for one in statements.unclaimed(100) if one.id == run_id)
        reserved, oldest = statements.reservations()
        evidence = Evidence(
            claimed_up_to=statements.claimed_up_to(run.queue, run.priority, GRACE),
            empty_since=oldest if empty and reserved == 0 else None,
        )
    return presumed_lost(run, evidence, HOUR)


def test_evidence_on_a_queue_is_not_looked_for_among_more_than_the_newest_5000(store: Store) -> None:
    finished = (
        "insert into durable.run"
        " (id, task, queue, state, message, body, published_at, claimed_at, finished_at)"
        " select %s::text || n, 'task', %s::text, 'succeeded', '', '', now() - %s::interval,"
        " now() - %s::interval, now() - %s::interval from generate_series(1, %s) n"
    )
    execute(store, finished, "rare-", "rare", *["20 minutes"] * 3, 1)
    execute(store, finished, "busy-", "busy", *["10 minutes"] * 3, 4999)
    with keeper(store) as statements:
        assert statements.claimed_up_to("busy", None, GRACE) is not None
        assert statements.claimed_up_to("rare", None, GRACE) is not None
        execute(store, finished, "more-", "busy", *["10 minutes"] * 3, 1)
        assert statements.claimed_up_to("rare", None, GRACE) is None
        assert statements.claimed_up_to("busy", None, GRACE) is not None


def test_a_backlog_is_never_published_again_and_a_hole_in_it_is(store: Store) -> None:
    worker = Worker(store)
    first, hole = worker.enqueue(), worker.enqueue()
    later, last = worker.enqueue(), worker.enqueue()
    execute(
        store,
        "update durable.run set published_at = published_at - interval '1 s' where id = any(%s)",
        [first, hole],
    )
    worker.claim(first)
    move_clock(store, "40 seconds")
    assert [judged(store, run_id) for run_id in (hole, later, last)] == [False, False, False]

    execute(
        store,
        "update durable.run set state = 'running', due = null, fence = gen_random_uuid(), worker = %s,"
        " claimed_at = now() where id = %s",
        worker.id,
        later,
    )

    assert [judged(store, run_id) for run_id in (hole, last)] == [True, False]


def test_a_run_claimed_a_moment_ago_says_nothing_of_those_before_it(store: Store) -> None:
    """Several workers fetch at once: their claims arrive out of order."""
    worker = Worker(store)
    hole = worker.enqueue()
    later = worker.enqueue()
    move_clock(store, "40 seconds")
    worker.claim(later)

    assert not judged(store, hole)


def test_claims_of_another_queue_or_priority_say_nothing(store: Store) -> None:
    worker = Worker(store)
    hole = worker.enqueue(queue="slow", priority=3)
    worker.start(queue="slow", priority=5)
    worker.start(queue="fast", priority=3)
    worker.succeed(worker.start(queue="slow", priority=None))
    move_clock(store, "40 seconds")
    assert not judged(store, hole)

    move_clock(store, "0")
    worker.succeed(worker.start(queue="slow", priority=3))
    move_clock(store, "40 seconds")

    assert judged(store, hole)


def test_an_empty_queue_proves_a_loss_only_when_no_worker_has_held_a_message_since(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    move_clock(store, "40 seconds")
    assert not judged(store, run_id, empty=True), "the last report is older than the message"

    with keeper(store) as statements:
        statements.beat(worker.token, reserved=1)
    assert not judged(store, run_id, empty=True)

    with keeper(store) as statements:
        statements.beat(worker.token, reserved=0)
    assert judged(store, run_id, empty=True)


def test_a_message_that_nobody_claimed_for_very_long_is_published_again_whatever_the_broker_says(
    store: Store,
) -> None:
    run_id = Worker(store).enqueue()
    move_clock(store, "2 hours")

    assert judged(store, run_id)


def test_expiry_ends_runs_that_were_never_claimed_and_no_others(store: Store) -> None:
    worker = Worker(store)
    expired, fresh = worker.enqueue(expires=timedelta(minutes=1)), worker.enqueue(expires=timedelta(days=1))
    started = worker.retry(worker.start(expires=timedelta(minutes=1)), delay=timedelta(0))
    running = worker.start(expires=timedelta(minutes=1)).id
    move_clock(store, "2 minutes")

    with keeper(store) as statements:
        assert statements.expire(100) == [expired]

    assert {run_id: row(store, run_id)["state"] for run_id in (expired, fresh, started, running)} == {
        expired: "cancelled",
        fresh: "pending",
        started: "pending",
        running: "running",
    }


def test_a_claim_and_an_expiry_at_once_have_one_winner(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue(expires=timedelta(minutes=1))
    move_clock(store, "2 minutes")

    outcome = store.runs.claim(run_id, fence=worker.token, token=worker.token, pid=1, revision=0)
    with keeper(store) as statements:
        ended = statements.expire(100)

    assert (outcome, ended) == (Refusal.EXPIRED, [])
    assert row(store, run_id)["reason"] == "expired"


@pytest.mark.parametrize("waiting", [True, False])
def test_help_is_asked_for_only_when_due_runs_pile_up(store: Store, *, waiting: bool) -> None:
    worker = Worker(store)
    worker.enqueue(**({"countdown": timedelta(minutes=1)} if waiting else {"publish": False}))
    with keeper(store) as statements:
        assert statements.beat(worker.token, reserved=0) is False
    move_clock(store, "2 minutes")

    with keeper(store) as statements:
        assert statements.beat(worker.token, reserved=0) is True


def test_a_failure_nobody_was_told_of_is_reported_once(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.fail(worker.start())
    execute(store, "update durable.run set unreported = true")
    with keeper(store) as statements:
        assert statements.unreported(10) == [], "its own worker is just about to"
    move_clock(store, "11 seconds")

    with keeper(store) as statements:
        assert [run.id for run in statements.unreported(10)] == [run_id]
    store.runs.reported(run_id)

    with keeper(store) as statements:
        assert statements.unreported(10) == []
