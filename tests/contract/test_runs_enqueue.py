"""A run is stored before its message is sent, once for every id."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from contending import background, in_transaction, step_write, together, wait_until_blocked
from inspecting import Worker, execute

from celery_durable.exceptions import LeaseLostError
from celery_durable.store.runs import NewRun, Release

if TYPE_CHECKING:
    from celery_durable.store import Store

NOW = timedelta(0)


def new(run_id: str | None = None, **options: Any) -> NewRun:
    given: dict[str, Any] = {"queue": "celery", "priority": None, "message": b"{}", "body": b"[]", **options}
    return NewRun(id=run_id or str(uuid.uuid4()), task="media.process", **given)


def test_the_same_id_sent_from_everywhere_at_once_is_one_run(store: Store) -> None:
    run = new()

    states = together(*[lambda: store.runs.enqueue(run)] * 4)

    assert sorted(states, key=bool) == [None, None, None, "pending"]
    assert store.runs.unclaimed([run.id]) == {run.id}
    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 1}]


@pytest.mark.parametrize("still_committing", [False, True])
@pytest.mark.parametrize("delay", [None, timedelta(hours=1)])
def test_an_enqueue_repeated_after_its_answer_was_lost_says_that_the_run_is_to_be_sent(
    store: Store, *, delay: timedelta | None, still_committing: bool
) -> None:
    run = new(countdown=delay)

    with in_transaction(store) as lost:
        first = lost.enqueue(run)
        if still_committing:
            repeated = background(lambda: store.runs.enqueue(run))
            wait_until_blocked(store)
    again = repeated.result(10) if still_committing else store.runs.enqueue(run)

    assert first == ("waiting" if delay else "pending")
    assert again is None  # so that the caller does not take it for its own
    assert store.runs.unclaimed([run.id]) == (set() if delay else {run.id})  # what waits is not sent now
    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 1}]


def test_an_id_whose_run_is_under_way_or_over_is_left_alone(store: Store) -> None:
    worker = Worker(store)
    started = worker.start()
    over = worker.succeed(worker.start())

    assert store.runs.enqueue(new(started.id, body=b"other")) is None
    assert store.runs.enqueue(new(over, body=b"other")) is None
    assert execute(store, "select distinct body from durable.run") == [{"body": b"[]"}]


@pytest.mark.parametrize(
    ("when", "state", "reason"),
    [
        ({}, "pending", None),
        ({"countdown": timedelta(seconds=-5)}, "pending", None),
        ({"countdown": timedelta(hours=1)}, "waiting", "timer"),
        ({"eta": datetime(2200, 1, 1, tzinfo=timezone.utc)}, "waiting", "timer"),
        ({"eta": datetime(2000, 1, 1, tzinfo=timezone.utc)}, "pending", None),
    ],
)
def test_countdown_and_eta_are_the_runs_due_time(
    store: Store, when: dict[str, Any], state: str, reason: str | None
) -> None:
    assert store.runs.enqueue(new(**when)) == state

    (row,) = execute(store, "select state, reason, due, published_at from durable.run")
    assert (row["state"], row["reason"]) == (state, reason)
    assert (row["published_at"] is None) is (state == "waiting")
    if "eta" in when and state == "waiting":
        assert row["due"] == when["eta"]


def test_a_run_stored_while_the_broker_is_away_is_due_for_the_keeper(store: Store) -> None:
    store.runs.enqueue(new(publish=False))

    assert execute(store, "select published_at, due <= now() as due from durable.run") == [
        {"published_at": None, "due": True}
    ]


def test_a_message_the_broker_did_not_take_is_handed_to_the_keeper(store: Store) -> None:
    worker = Worker(store)
    failed, claimed = worker.enqueue(), worker.start()

    store.runs.unpublish([failed, claimed.id], timedelta(seconds=1))

    rows = execute(
        store, "select id, published_at is null as unpublished from durable.run where state = 'pending'"
    )
    assert rows == [{"id": failed, "unpublished": True}]
    assert execute(store, "select due from durable.run where state = 'running'") == [{"due": None}]


def test_a_caller_who_was_told_that_sending_failed_leaves_no_run(store: Store) -> None:
    worker = Worker(store)
    unsent, claimed = worker.enqueue(), worker.start()

    store.runs.withdraw([unsent, claimed.id])

    assert execute(store, "select id from durable.run") == [{"id": claimed.id}]


@pytest.mark.parametrize("still_committing", [False, True])
def test_a_child_and_the_step_that_started_it_are_stored_together_and_once(
    store: Store, *, still_committing: bool
) -> None:
    claim = Worker(store).start()
    child, write = new(), step_write("delay:media.process", 1)

    def start() -> tuple[bool, str | None]:
        return store.runs.enqueue_child(claim.key, claim.fence, write, child)

    with in_transaction(store) as lost:
        lost.enqueue_child(claim.key, claim.fence, write, child)
        if still_committing:
            repeated = background(start)
            wait_until_blocked(store)
    assert (repeated.result(10) if still_committing else start()) == (False, "pending")

    assert execute(store, "select key from durable.checkpoint") == [{"key": "delay:media.process"}]
    assert execute(store, "select id from durable.run where id <> %s", claim.id) == [{"id": child.id}]


def test_a_superseded_attempt_starts_no_child(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("released", NOW))

    with pytest.raises(LeaseLostError):
        store.runs.enqueue_child(claim.key, claim.fence, step_write("delay:x", 1), new())

    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 1}]
    assert execute(store, "select key from durable.checkpoint") == []


def test_a_run_replaced_by_a_canvas_takes_its_place_again_when_the_body_comes_back(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("replaced", NOW, "replaced", discard="all"))

    assert store.runs.enqueue(new(claim.id, body=b"[1]")) == "pending"

    again = worker.claim(claim.id)
    assert again.attempt == 2
