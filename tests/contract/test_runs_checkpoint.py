"""A checkpoint is stored by the attempt that holds the run, once, or not at all."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from contending import (
    altered,
    background,
    changed,
    in_transaction,
    keeper,
    step_write,
    wait_until_blocked,
)
from inspecting import Worker, execute

from celery_durable.exceptions import LeaseLostError, NondeterminismError
from celery_durable.store.runs import Release, RunStore

if TYPE_CHECKING:
    from celery_durable.run import Claim
    from celery_durable.store import Store

NOW = timedelta(0)
NO_FENCE = {"a read without a lock": "", "a lock that only keys mind": "for key share"}


def with_lock(store: Store, lock: str) -> RunStore:
    """Return the statements of runs, their checkpoint with another lock on the run row."""
    runs = altered(store, "checkpoint", ("for no key update", lock))
    runs._sql["checkpoint_told"] = changed(runs._sql["checkpoint_told"], ("for no key update", lock))
    return runs


def lose(store: Store, worker: Worker) -> None:
    """Declare a worker dead and recover its runs, as far as nobody holds them."""
    leader = Worker(store, "leader@one")
    with keeper(store) as statements:
        term = statements.lead(leader.token, timedelta(minutes=1)).term
        assert term is not None
        execute(store, "delete from durable.worker where id = %s", worker.id)
        statements.recover_orphans(term, limit=10, max_recoveries=3, result=b"", result_type="json")
        statements.retire(leader.token)


def keys(store: Store, claim: Claim) -> list[str]:
    rows = execute(store, "select key from durable.checkpoint where run_key = %s order by seq", claim.key)
    return [row["key"] for row in rows]


def history(store: Store, run_id: str) -> tuple[Claim, list[str]]:
    worker = Worker(store, "worker@next")
    outcome = store.runs.claim(run_id, fence=worker.token, token=worker.token, pid=8, revision=0)
    assert isinstance(outcome, tuple)
    return outcome[0], [step.key for step in outcome[1]]


def test_a_checkpoint_on_its_way_keeps_the_run_from_being_taken_until_it_is_stored(store: Store) -> None:
    """The worker is thought dead, its last checkpoint is not committed yet: the next attempt sees it."""
    worker = Worker(store)
    claim = worker.start()

    with in_transaction(store) as zombie:
        zombie.checkpoint(claim.key, claim.fence, step_write("download", 1))
        lose(store, worker)
        assert execute(store, "select state from durable.run") == [{"state": "running"}]
    lose(store, worker)

    assert history(store, claim.id)[1] == ["download"]


def test_a_checkpoint_without_a_lock_lets_two_attempts_write(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()

    with in_transaction(store, with_lock(store, "")) as zombie:
        zombie.checkpoint(claim.key, claim.fence, step_write("download", 1))
        lose(store, worker)
        second, seen = history(store, claim.id)
        store.runs.checkpoint(second.key, second.fence, step_write("resize", 1))

    assert seen == []
    assert keys(store, claim) == ["download", "resize"]


@pytest.mark.parametrize("lock", ["for no key update", *NO_FENCE.values()], ids=["as it is", *NO_FENCE])
def test_a_run_ends_before_or_after_a_checkpoint_and_not_during_it(store: Store, lock: str) -> None:
    worker = Worker(store)
    claim = worker.start()

    with in_transaction(store, with_lock(store, lock)) as open_runs:
        open_runs.checkpoint(claim.key, claim.fence, step_write("download", 1))
        ending = background(lambda: store.runs.revoke(claim.id, token=worker.token, terminated=True))
        if lock == "for no key update":
            wait_until_blocked(store)
        else:
            assert ending.result(10)
        seen = execute(store, "select state from durable.run")

    assert ending.result(10)
    assert seen == [{"state": "running" if lock == "for no key update" else "cancelled"}]


@pytest.mark.parametrize("lock", ["for no key update", *NO_FENCE.values()], ids=["as it is", *NO_FENCE])
def test_a_checkpoint_that_meets_the_end_of_its_attempt_waits_and_is_refused(store: Store, lock: str) -> None:
    """Its snapshot shows its own fence, the row under the lock another one."""
    worker = Worker(store)
    claim = worker.start()
    runs = with_lock(store, lock)

    with in_transaction(store) as other:
        other.release(claim.key, claim.fence, Release("released", NOW))
        writing = background(lambda: runs.checkpoint(claim.key, claim.fence, step_write("late", 1)))
        if lock == "for no key update":
            wait_until_blocked(store)
        else:
            writing.exception(10)

    refused = isinstance(writing.exception(10), LeaseLostError)
    assert (refused, keys(store, claim)) == ((True, []) if lock == "for no key update" else (False, ["late"]))


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("write", [step_write("download", 1), step_write("download", 1, "error")])
def test_a_superseded_attempt_stores_nothing(store: Store, *, relaxed: bool, write: object) -> None:
    worker = Worker(store)
    claim = worker.start()
    lose(store, worker)
    history(store, claim.id)

    with pytest.raises(LeaseLostError):
        store.runs.checkpoint(claim.key, claim.fence, write, relaxed=relaxed)  # type: ignore[arg-type]

    assert keys(store, claim) == []


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("still_committing", [False, True])
@pytest.mark.parametrize("outcome", ["ok", "error", "trying", "started"])
def test_a_checkpoint_repeated_after_its_answer_was_lost_is_stored_once(
    store: Store,
    outcome: str,
    *,
    still_committing: bool,
    relaxed: bool,
) -> None:
    claim = Worker(store).start()
    write = step_write("download", 1, outcome, output=b"value")

    def repeat() -> bool:
        return store.runs.checkpoint(claim.key, claim.fence, write, relaxed=relaxed)

    with in_transaction(store) as lost:
        lost.checkpoint(claim.key, claim.fence, write, relaxed=relaxed)
        if still_committing:
            repeated = background(repeat)
            wait_until_blocked(store)
    assert (repeated.result(10) if still_committing else repeat()) is False

    assert execute(store, "select key, outcome, output, tries from durable.checkpoint") == [
        {"key": "download", "outcome": outcome, "output": b"value", "tries": 1}
    ]


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_checkpoint_repeated_later_keeps_the_time_at_which_it_was_stored(
    store: Store, *, relaxed: bool
) -> None:
    claim = Worker(store).start()
    write = step_write("download", 1, "ok", output=b"value")
    times = []
    for _ in range(2):
        store.runs.checkpoint(claim.key, claim.fence, write, relaxed=relaxed)
        times += execute(store, "select stored_at from durable.checkpoint")

    assert times[0] == times[1]


@pytest.mark.parametrize("finished", ["ok", "error"])
def test_a_finished_checkpoint_never_changes(store: Store, finished: str) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("download", 1, finished, output=b"first"))

    for other in (
        step_write("download", 1, "ok", output=b"second", tries=2),
        step_write("download", 1, "error", output=b"second", tries=2),
        step_write("download", 2, "trying", output=b"second", tries=2),
    ):
        with pytest.raises(NondeterminismError, match="two calls share its key"):
            store.runs.checkpoint(claim.key, claim.fence, other)

    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    second, _ = history(store, claim.id)
    with pytest.raises(NondeterminismError):
        store.runs.checkpoint(second.key, second.fence, step_write("download", 1, finished, output=b"second"))
    assert execute(store, "select outcome, output from durable.checkpoint") == [
        {"outcome": finished, "output": b"first"}
    ]


def test_failed_tries_are_counted_in_the_store(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    for tries in (1, 2):
        write = step_write("download", 1, "trying", tries=tries, error="OSError: no")
        store.runs.checkpoint(claim.key, claim.fence, write)
    store.runs.release(claim.key, claim.fence, Release("released", NOW))

    outcome = store.runs.claim(claim.id, fence=worker.token, token=worker.token, pid=1, revision=0)

    assert isinstance(outcome, tuple)
    assert [(step.outcome, step.tries) for step in outcome[1]] == [("trying", 2)]


def test_a_start_marker_outlives_the_attempt_that_set_it(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("charge", 1, "started"))
    lose(store, worker)

    assert history(store, claim.id)[1] == ["charge"]
    assert execute(store, "select outcome from durable.checkpoint") == [{"outcome": "started"}]


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_checkpoint_is_stored_and_tells_that_the_run_should_stop(store: Store, *, relaxed: bool) -> None:
    claim = Worker(store).start()
    first = store.runs.checkpoint(claim.key, claim.fence, step_write("a", 1), relaxed=relaxed)
    execute(store, "update durable.run set cancel_requested = true")

    second = store.runs.checkpoint(claim.key, claim.fence, step_write("b", 2), relaxed=relaxed)

    assert (first, second) == (False, True)
    assert keys(store, claim) == ["a", "b"]


def test_a_relaxed_checkpoint_leaves_the_connection_as_strict_as_it_was(store: Store) -> None:
    claim = Worker(store).start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("a", 1), relaxed=True)

    again = store.connections.once(
        lambda connection: connection.execute("show synchronous_commit").fetchone()
    )
    assert again == {"synchronous_commit": "on"}


def errors_after_release(store: Store, discard: str) -> dict[str, tuple[str, int]]:
    worker = Worker(store)
    claim = worker.start()
    for seq, (key, outcome) in enumerate(
        [("caught", "error"), ("download", "ok"), ("parse", "error"), ("upload", "trying")], 1
    ):
        store.runs.checkpoint(claim.key, claim.fence, step_write(key, seq, outcome, tries=2))
    store.runs.release(
        claim.key, claim.fence, Release("retry", timedelta(minutes=1), "retry", discard=discard)
    )
    rows = execute(store, "select key, outcome, spent from durable.checkpoint order by seq")
    return {row["key"]: (row["outcome"], row["spent"]) for row in rows}


def test_a_retry_puts_aside_step_errors_after_the_last_success_and_keeps_those_before(store: Store) -> None:
    assert errors_after_release(store, "errors") == {
        "caught": ("error", 0),
        "download": ("ok", 0),
        "parse": ("discarded", 2),
        "upload": ("trying", 0),
    }


def test_leaving_the_worker_for_another_reason_keeps_every_step(store: Store) -> None:
    assert [outcome for outcome, _ in errors_after_release(store, "none").values()] == [
        "error",
        "ok",
        "error",
        "trying",
    ]


def test_a_replaced_task_leaves_no_step_to_its_successor(store: Store) -> None:
    assert errors_after_release(store, "all") == {}


def test_a_step_that_was_put_aside_is_stored_anew_with_all_its_tries(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.checkpoint(claim.key, claim.fence, step_write("parse", 1, "error", tries=2))
    worker.retry(claim, delay=NOW)
    second, _ = history(store, claim.id)

    store.runs.checkpoint(second.key, second.fence, step_write("parse", 1, "ok", tries=3, spent=2))

    assert execute(store, "select outcome, tries, spent, attempt from durable.checkpoint") == [
        {"outcome": "ok", "tries": 3, "spent": 2, "attempt": 2}
    ]
