"""Of a step that is tried again it is kept when each try failed, after how long and with what."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from contending import step_write
from inspecting import Worker

if TYPE_CHECKING:
    from celery_durable.run import Claim
    from celery_durable.store import Store
    from celery_durable.store.views import StepView


def fail(store: Store, claim: Claim, tries: int, outcome: str = "trying", **more: Any) -> None:
    given = {"error": f"ValueError: try {tries}", "tries": tries, "seconds": tries / 10, **more}
    store.runs.checkpoint(claim.key, claim.fence, step_write("charge", 1, outcome, **given))


def succeed(store: Store, claim: Claim, tries: int, **more: Any) -> None:
    store.runs.checkpoint(claim.key, claim.fence, step_write("charge", 1, tries=tries, **more))


def step(store: Store, claim: Claim) -> StepView:
    run = store.inspection.get(claim.id)
    assert run is not None
    return run.steps[0]


def test_each_failed_try_is_kept_with_its_time_and_error(store: Store) -> None:
    claim = Worker(store).start()
    fail(store, claim, 1)
    first = step(store, claim)
    fail(store, claim, 2)
    second = step(store, claim)
    succeed(store, claim, 3)

    found = step(store, claim)

    assert first.earlier == ()  # it is the stored one itself
    assert [(one.error, one.seconds, one.attempt) for one in found.earlier] == [
        ("ValueError: try 1", 0.1, 1),
        ("ValueError: try 2", 0.2, 1),
    ]
    near = timedelta(milliseconds=1)  # a float has no microseconds to spare
    assert abs(found.earlier[0].at - first.stored_at) < near
    assert abs(found.earlier[1].at - second.stored_at) < near
    assert (found.tries, found.outcome) == (3, "ok")


def test_a_write_that_is_repeated_because_its_answer_was_lost_keeps_each_try_once(store: Store) -> None:
    claim = Worker(store).start()
    fail(store, claim, 1)
    for _ in range(2):
        fail(store, claim, 2)
    for _ in range(2):
        succeed(store, claim, 3)

    assert [one.error for one in step(store, claim).earlier] == ["ValueError: try 1", "ValueError: try 2"]


def test_only_the_last_fifty_are_kept_and_all_are_counted(store: Store) -> None:
    claim = Worker(store).start()
    for tries in range(1, 61):
        fail(store, claim, tries, error=f"{tries} " + "x" * 1000)
    succeed(store, claim, 61)

    found = step(store, claim)

    assert found.tries == 61
    assert [one.error and one.error.split()[0] for one in found.earlier] == [str(n) for n in range(11, 61)]
    assert all(one.error and len(one.error) == 300 for one in found.earlier)


def test_an_error_that_a_retry_of_the_run_puts_aside_is_kept_with_its_attempt(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    fail(store, claim, 1, "error")
    worker.retry(claim, delay=timedelta(0))

    again = worker.claim(claim.id)
    succeed(store, again, 2, spent=1)

    assert [(one.error, one.attempt) for one in step(store, again).earlier] == [("ValueError: try 1", 1)]


def test_a_marker_that_a_step_was_started_is_no_try(store: Store) -> None:
    claim = Worker(store).start()
    fail(store, claim, 1, "started")
    succeed(store, claim, 1)

    assert step(store, claim).earlier == ()


def test_of_very_many_tries_those_of_the_steps_tried_most_are_read(store: Store) -> None:
    claim = Worker(store).start()
    with store.connections.dedicated() as connection:
        connection.execute(
            """
            insert into durable.checkpoint
                (run_key, key, seq, outcome, digest, arguments, fence, attempt, tries, seconds, earlier)
            select %s, 'step#' || n, n, 'ok', 'd', '()', gen_random_uuid(), 1,
                   case when n > 100 then 60 else 51 end, 0,
                   (select jsonb_agg('{"at": 0.0, "seconds": 0.1, "attempt": 1, "error": "no"}'::jsonb)
                    from generate_series(1, 50))
            from generate_series(1, 150) n
            """,
            (claim.key,),
        )

    run = store.inspection.get(claim.id)

    assert run is not None
    assert sum(len(one.earlier) for one in run.steps) == 5000
    assert all(one.earlier for one in run.steps if one.tries == 60)
    assert [one.key for one in run.steps] == [f"step#{n}" for n in range(1, 151)]
