"""What inspection reads, and what cancel and resume change, also while workers change it."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from inspecting import Worker, execute, open_transaction

from celery_durable.run import Refusal, RunState
from celery_durable.store import queries
from celery_durable.store.inspection import Filter
from celery_durable.store.queries import with_lines
from celery_durable.store.runs import Finish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.store import Store
    from celery_durable.store.views import Change

CHECK = timedelta(seconds=30)


def cancel(store: Store, *ids: str, operation: uuid.UUID | None = None) -> Sequence[Change]:
    return store.inspection.cancel(ids, operation=operation or uuid.uuid4(), actor="ada", reason="a test")


def resume(store: Store, *ids: str, operation: uuid.UUID | None = None) -> Sequence[Change]:
    return store.inspection.resume(
        ids, operation=operation or uuid.uuid4(), actor="ada", reason="a test", check=CHECK
    )


def ids(store: Store, **wanted: Any) -> list[str]:
    return [run.id for run in store.inspection.list(Filter(**wanted)).runs]


def wait_for_lock(store: Store) -> None:
    """Return when some session waits for another one's lock."""
    waiting = (
        "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    pause = threading.Event()
    for _ in range(1000):
        if execute(store, waiting):
            return
        pause.wait(0.01)
    pytest.fail("nobody waits for a lock")


def test_list_shows_the_newest_first_and_pages_by_key(store: Store) -> None:
    worker = Worker(store)
    made = [worker.enqueue() for _ in range(5)]

    first = store.inspection.list(Filter(), limit=2)
    second = store.inspection.list(Filter(), limit=2, before=first.next)
    third = store.inspection.list(Filter(), limit=2, before=second.next)

    assert [run.id for page in (first, second, third) for run in page.runs] == made[::-1]
    assert third.next is None


def test_list_filters_by_what_a_run_is_and_where_it_runs(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "worker@two")
    pending = worker.enqueue(task="media.publish")
    running = worker.start().id
    elsewhere = other.start().id
    waiting = worker.retry(worker.start())
    failed = worker.fail(worker.start())
    exhausted = worker.fail(worker.start(), reason="exhausted")
    succeeded = worker.succeed(worker.start())

    assert ids(store, task="media.publish") == [pending]
    assert ids(store, states=[RunState.RUNNING]) == [elsewhere, running]
    assert ids(store, states=[RunState.SUCCEEDED, RunState.PENDING]) == [succeeded, pending]
    assert ids(store, worker="worker@two") == [elsewhere]
    assert ids(store, reason="exhausted") == [exhausted]
    assert ids(store, has_error=True) == [exhausted, failed, waiting]
    assert ids(store, has_error=False) == [succeeded, elsewhere, running, pending]
    assert ids(store, reason="retry", states=[RunState.FAILED]) == []


def test_list_finds_runs_by_the_time_they_were_created(store: Store) -> None:
    worker = Worker(store)
    made = [worker.enqueue() for _ in range(9)]
    for days, run_id in zip(range(9, 0, -1), made, strict=True):
        execute(
            store,
            "update durable.run set created_at = durable.clock() - make_interval(days => %s) where id = %s",
            days,
            run_id,
        )
    execute(store, "delete from durable.run where id = any(%s)", made[3:5])

    day = timedelta(days=1)
    assert ids(store, since=2.5 * day) == [made[8], made[7]]
    assert ids(store, until=7.5 * day) == [made[1], made[0]]
    assert ids(store, since=6.5 * day, until=2.5 * day) == [made[6], made[5]]
    moment = store.inspection.get(made[6])
    assert moment is not None
    assert ids(store, since=moment.created_at) == [made[8], made[7], made[6]]
    assert ids(store, until=moment.created_at) == [made[5], made[2], made[1], made[0]]


def test_time_bounds_of_an_empty_table_are_no_error(store: Store) -> None:
    assert ids(store, since=timedelta(hours=1)) == []
    assert ids(store, until=timedelta(hours=1)) == []


def test_a_prefix_finds_its_runs_and_an_exact_id_only_itself(store: Store) -> None:
    worker = Worker(store)
    for run_id in ("video-1", "video-10", "video-2", "Video-1", "other"):
        worker.enqueue(run_id)

    assert [match.id for match in store.inspection.resolve("video-")] == ["video-1", "video-10", "video-2"]
    assert [match.id for match in store.inspection.resolve("video-1")] == ["video-1"]
    assert [match.id for match in store.inspection.resolve("video-", limit=2)] == ["video-1", "video-10"]
    assert list(store.inspection.resolve("video_")) == []


def test_a_run_is_shown_with_its_attempts_steps_and_events(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start("story")
    worker.step(claim, "fetch", 1)
    worker.step(claim, "probe", 2, "error", tries=3)
    worker.retry(claim)
    cancel(store, "story")

    run = store.inspection.get("story")

    assert run is not None
    assert (run.state, run.celery_state, run.reason) == (RunState.CANCELLED, "REVOKED", "cancelled")
    assert (run.hostname, run.error) == ("worker@one", "ValueError: no")
    assert [(one.number, one.outcome, one.hostname) for one in run.attempts] == [(1, "retry", "worker@one")]
    assert [(step.key, step.outcome, step.tries) for step in run.steps] == [
        ("fetch", "ok", 1),
        ("probe", "discarded", 3),
    ]
    [event] = run.events
    assert (event.kind, event.actor, event.detail["reason"]) == ("cancelled", "ada", "a test")
    assert store.inspection.get("nobody") is None


def test_a_run_whose_worker_is_gone_is_shown_as_orphaned(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    assert [run.orphaned for run in store.inspection.list(Filter()).runs] == [False]

    worker.vanish()

    run = store.inspection.get(claim.id)
    assert run is not None
    assert run.orphaned


def test_counts_are_by_state_and_reason(store: Store) -> None:
    worker = Worker(store)
    worker.enqueue()
    worker.enqueue()
    worker.fail(worker.start(), reason="exhausted")
    worker.fail(worker.start())

    counted = [(count.state, count.reason, count.runs) for count in store.inspection.counts()]

    assert counted == [("failed", None, 1), ("failed", "exhausted", 1), ("pending", None, 2)]


def test_cancel_ends_what_nobody_executes_and_a_late_claim_is_refused(store: Store) -> None:
    worker = Worker(store)
    pending = worker.enqueue()
    waiting = worker.retry(worker.start())

    changes = cancel(store, waiting, pending)

    assert [(c.id, c.before, c.state, c.changed) for c in changes] == [
        (pending, RunState.PENDING, RunState.CANCELLED, True),
        (waiting, RunState.WAITING, RunState.CANCELLED, True),
    ]
    late = store.runs.claim(pending, fence=uuid.uuid4(), token=worker.token, pid=1, revision=0)
    assert late is Refusal.FINAL


def test_cancel_asks_a_running_run_to_stop_once_and_leaves_its_lease(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()

    [first], [second] = cancel(store, claim.id), cancel(store, claim.id)

    assert (first.state, first.changed) == (RunState.RUNNING, True)
    assert (second.state, second.changed) == (RunState.RUNNING, False)
    run = store.inspection.get(claim.id)
    assert run is not None
    assert [event.kind for event in run.events] == ["cancel_requested"]
    assert run.cancel_requested
    worker.succeed(claim)
    assert ids(store, states=[RunState.SUCCEEDED]) == [claim.id]


def test_cancel_leaves_final_runs_alone(store: Store) -> None:
    worker = Worker(store)
    succeeded = worker.succeed(worker.start())

    [change] = cancel(store, succeeded, "nobody")

    assert (change.id, change.state, change.changed) == (succeeded, RunState.SUCCEEDED, False)
    run = store.inspection.get(succeeded)
    assert run is not None
    assert run.events == ()


def test_a_cancel_repeated_after_its_answer_was_lost_recognises_itself(store: Store) -> None:
    pending = Worker(store).enqueue()
    operation = uuid.uuid4()

    [first] = cancel(store, pending, operation=operation)
    [again] = cancel(store, pending, operation=operation)

    assert (again.before, again.state, again.changed) == (first.before, first.state, first.changed)
    assert len(execute(store, "select key from durable.event")) == 1


def test_a_cancel_that_waits_for_a_claim_sees_the_running_run(store: Store) -> None:
    worker = Worker(store)
    run_id = worker.enqueue()
    sql = queries.load("runs")["claim"]
    identity = {"fence": uuid.uuid4(), "token": worker.token, "pid": 1}
    parameters = {"id": run_id, "task": None, "revision": 0, **identity}
    with ThreadPoolExecutor() as pool:
        with open_transaction(store) as connection:
            connection.execute(sql, parameters)
            cancelled = pool.submit(cancel, store, run_id)
            wait_for_lock(store)
        [change] = cancelled.result(10)

    assert (change.before, change.state, change.changed) == (RunState.RUNNING, RunState.RUNNING, True)
    run = store.inspection.get(run_id)
    assert run is not None
    assert run.cancel_requested


def test_a_cancel_that_waits_for_a_finish_changes_nothing(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    sql = queries.load("runs")["finish"]
    outcome = {**Finish(RunState.SUCCEEDED, b"1").__dict__, "state": "succeeded"}
    with ThreadPoolExecutor() as pool:
        with open_transaction(store) as connection:
            connection.execute(sql, {**outcome, "run": claim.key, "fence": claim.fence})
            cancelled = pool.submit(cancel, store, claim.id)
            wait_for_lock(store)
        [change] = cancelled.result(10)

    assert (change.state, change.changed) == (RunState.SUCCEEDED, False)
    run = store.inspection.get(claim.id)
    assert run is not None
    assert not run.cancel_requested


def test_resume_opens_a_new_generation_that_can_be_claimed(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start("again")
    worker.step(claim, "fetch", 1)
    worker.fail(claim, reason="exhausted")
    execute(store, "update durable.run set retries = 3, recoveries = 11 where id = 'again'")

    [change] = resume(store, "again")

    assert (change.before, change.state, change.generation) == (RunState.FAILED, RunState.PENDING, 1)
    assert (change.message, change.body) == (b"{}", b"[]")
    run = store.inspection.get("again")
    assert run is not None
    assert (run.retries, run.recoveries, run.finished_at, run.result_bytes) == (0, 0, None, None)
    assert run.due is not None
    assert run.due - run.now <= CHECK
    assert worker.claim("again").attempt == 2


def test_resume_puts_aside_the_errors_after_the_last_success_and_keeps_the_others(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start("again")
    worker.step(claim, "caught", 1, "error")
    worker.step(claim, "fetch", 2)
    worker.step(claim, "probe", 3, "error", tries=4)
    worker.fail(claim)

    resume(store, "again")

    run = store.inspection.get("again")
    assert run is not None
    assert [(step.key, step.outcome, step.spent) for step in run.steps] == [
        ("caught", "error", 0),
        ("fetch", "ok", 0),
        ("probe", "discarded", 4),
    ]
    [event] = run.events
    assert (event.kind, event.detail["discarded"], event.detail["generation"]) == ("resumed", ["probe"], 1)


def test_a_resume_that_waits_for_the_last_attempt_sees_its_last_error(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start("again")
    runs = queries.load("runs")
    outcome = {**Finish(RunState.FAILED, b"{}").__dict__, "state": "failed"}
    with ThreadPoolExecutor() as pool:
        with open_transaction(store) as connection:
            # in one transaction for the test's sake: the resume begins before the error is there to be seen
            connection.execute(
                runs["checkpoint"],
                {
                    "run": claim.key,
                    "fence": claim.fence,
                    "key": "probe",
                    "seq": 1,
                    "outcome": "error",
                    "output": b"{}",
                    "codec": "json",
                    "digest": b"d",
                    "arguments": "()",
                    "tries": 1,
                    "spent": 0,
                    "error": "ValueError: no",
                    "clock": None,
                    "seconds": 0.1,
                    "behind": None,
                },
            )
            connection.execute(runs["finish"], {**outcome, "run": claim.key, "fence": claim.fence})
            resumed = pool.submit(resume, store, "again")
            wait_for_lock(store)
        [change] = resumed.result(10)

    assert change.changed
    run = store.inspection.get("again")
    assert run is not None
    assert [step.outcome for step in run.steps] == ["discarded"]


def test_an_expired_run_can_be_resumed_and_then_claimed(store: Store) -> None:
    worker = Worker(store)
    worker.enqueue("late", expires=timedelta(seconds=-1))
    assert (
        store.runs.claim("late", fence=uuid.uuid4(), token=worker.token, pid=1, revision=0) is Refusal.EXPIRED
    )

    [change] = resume(store, "late")

    assert change.before is RunState.CANCELLED
    assert worker.claim("late").attempt == 1


@pytest.mark.parametrize("state", ["pending", "running", "waiting", "succeeded"])
def test_resume_leaves_a_run_alone_that_is_not_failed_or_cancelled(store: Store, state: str) -> None:
    worker = Worker(store)
    run_id = {
        "pending": worker.enqueue,
        "running": lambda: worker.start().id,
        "waiting": lambda: worker.retry(worker.start()),
        "succeeded": lambda: worker.succeed(worker.start()),
    }[state]()

    [change] = resume(store, run_id)

    assert (change.state, change.changed) == (RunState(state), False)


def test_a_resume_repeated_after_its_answer_was_lost_opens_one_generation(store: Store) -> None:
    worker = Worker(store)
    failed = worker.fail(worker.start())
    operation = uuid.uuid4()

    resume(store, failed, operation=operation)
    worker.claim(failed)
    [again] = resume(store, failed, operation=operation)

    assert (again.before, again.state, again.changed, again.generation) == (
        RunState.FAILED,
        RunState.RUNNING,
        True,
        1,
    )


def test_cancel_and_resume_take_the_run_from_whoever_held_its_fence(store: Store) -> None:
    worker = Worker(store)
    waiting, failed = worker.retry(worker.start()), worker.fail(worker.start())
    before = execute(store, "select fence from durable.run order by key")

    cancel(store, waiting)
    resume(store, failed)

    after = execute(store, "select fence from durable.run order by key")
    assert all(was["fence"] != now["fence"] for was, now in zip(before, after, strict=True))


@pytest.mark.parametrize("operation", [cancel, resume])
def test_a_batch_locks_its_runs_in_key_order_whatever_their_names_and_places(
    store: Store, operation: Callable[..., object]
) -> None:
    worker = Worker(store)
    for run_id in ("b", "a"):
        worker.enqueue(run_id)
    execute(store, "update durable.run set checks = 0 where id = 'b'")  # which moves it behind the other
    with ThreadPoolExecutor() as pool:
        with open_transaction(store) as connection:
            connection.execute("select key from durable.run where id = 'b' for update")
            batch = pool.submit(operation, store, "a", "b")
            wait_for_lock(store)
            execute(store, "select key from durable.run where id = 'a' for update nowait")
        batch.result(10)


def test_filters_that_are_not_given_leave_no_trace_in_the_statement() -> None:
    sql = queries.load("inspection")["list"]

    assert "%(task)s" in with_lines(sql, ["task"])
    assert "%(reason)s" not in with_lines(sql, ["task"])
    assert "--?" not in with_lines(sql, [])
