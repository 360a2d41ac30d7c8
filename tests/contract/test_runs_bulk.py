"""Many runs are stored in few statements, each of them as if it were alone."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from contending import background, in_transaction, wait_until_blocked
from inspecting import Worker, execute
from psycopg import DataError

from celery_durable.exceptions import LeaseLostError
from celery_durable.run import RunState
from celery_durable.store import bulk
from celery_durable.store.runs import Finish, NewRun, PlainMessage, Release
from celery_durable.store.writes import NewChain

if TYPE_CHECKING:
    from celery_durable.store import Store

NOW = timedelta(0)
HOUR = timedelta(hours=1)
SUCCESS = Finish(RunState.SUCCEEDED, b"1", "application/json")


def new(run_id: str | None = None, **options: Any) -> NewRun:
    defaults = {"task": "media.process", "queue": "celery", "priority": None, "message": b"{}", "body": b"[]"}
    return NewRun(id=run_id or str(uuid.uuid4()), **{**defaults, **options})


ALL_KINDS = {
    "plain": {},
    "everything": {
        "task": "médias",
        "queue": 'a "queue", {odd}',
        "priority": 7,
        "message": b"\x00\xff",
        "body": b"\x00" * 5000,
        "parent": "parent\\",
        "root": "NULL",
        "group": "",
        "version": "1",
    },
    "countdown": {"countdown": HOUR, "expires": 2 * HOUR},
    "past": {"countdown": -HOUR},
    "eta": {"eta": datetime(2200, 1, 1, tzinfo=timezone.utc), "countdown": HOUR},
    "eta in the past": {"eta": datetime(2000, 1, 1, tzinfo=timezone.utc)},
    "expires": {"expires_at": datetime(2200, 1, 1, tzinfo=timezone.utc), "expires": HOUR},
    "unpublished": {"publish": False},
    "unpublished timer": {"publish": False, "countdown": HOUR},
}
_STORED = """
select r.*, least(due - created_at, interval '1 day') as due_in, published_at is null as unpublished,
       least(expires_at - created_at, interval '1 day') as expires_in
from durable.run r where id like %s order by id
"""
_OF_ITS_OWN = ("key", "id", "seed", "created_at", "due", "published_at", "expires_at")


def stored(store: Store, prefix: str) -> list[dict[str, Any]]:
    rows = execute(store, _STORED, f"{prefix}%")
    return [{name: value for name, value in row.items() if name not in _OF_ITS_OWN} for row in rows]


def test_each_of_many_runs_is_stored_as_if_it_were_alone(store: Store) -> None:
    alone = [store.runs.enqueue(new(f"alone {kind}", **options)) for kind, options in ALL_KINDS.items()]
    together = store.runs.enqueue_bulk(
        [new(f"bulk {kind}", **options) for kind, options in ALL_KINDS.items()]
    )

    assert together == alone
    assert stored(store, "bulk") == stored(store, "alone")


def test_runs_keep_the_order_in_which_they_are_given(store: Store) -> None:
    runs = [new() for _ in range(2 * bulk.ROWS + 1)]

    assert store.runs.enqueue_bulk(runs) == ["pending"] * len(runs)

    rows = execute(store, "select id from durable.run order by key")
    assert [row["id"] for row in rows] == [run.id for run in runs]


def test_ids_that_are_known_and_ids_given_twice_are_stored_once(store: Store) -> None:
    started = Worker(store).start()
    twice = new(countdown=HOUR)
    runs = [new(), new(started.id, body=b"other"), twice, new(twice.id, body=b"other")]

    assert store.runs.enqueue_bulk(runs) == ["pending", None, "waiting", "waiting"]

    assert execute(store, "select distinct body from durable.run") == [{"body": b"[]"}]
    assert store.runs.unclaimed([run.id for run in runs]) == {runs[0].id}


def test_a_run_replaced_by_a_canvas_comes_back_among_others(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("replaced", NOW, "replaced", discard="all"))

    assert store.runs.enqueue_bulk([new(), new(claim.id, body=b"[1]")]) == ["pending", "pending"]

    assert worker.claim(claim.id).attempt == 2


@pytest.mark.parametrize("still_committing", [False, True])
def test_many_runs_whose_first_answer_was_lost_are_stored_once_and_still_to_be_sent(
    store: Store, *, still_committing: bool
) -> None:
    runs = [new() for _ in range(3)]
    with in_transaction(store) as lost:
        lost.enqueue_bulk(runs)
        if still_committing:
            repeated = background(lambda: store.runs.enqueue_bulk(runs))
            wait_until_blocked(store)
    again = repeated.result(10) if still_committing else store.runs.enqueue_bulk(runs)

    assert again == [None] * 3
    assert store.runs.unclaimed([run.id for run in runs]) == {run.id for run in runs}
    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 3}]


def test_many_links_of_a_finish_whose_answer_was_lost_are_still_to_be_sent_and_kept_once(
    store: Store,
) -> None:
    claim = Worker(store).start()
    links = [
        new("one"),
        PlainMessage("plain 1", b"{}", b"[]"),
        new("two"),
        PlainMessage("plain 2", b"{}", b"[]"),
    ]
    first = store.runs.finish(claim.key, claim.fence, SUCCESS, links).links

    assert store.runs.finish(claim.key, claim.fence, SUCCESS, links).links == first

    assert (first[0], first[2]) == ("pending", "pending")
    outbox = execute(store, "select key::text, id from durable.outbox order by id")
    assert outbox == [{"key": first[1], "id": "plain 1"}, {"key": first[3], "id": "plain 2"}]
    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 3}]


def test_a_superseded_attempt_starts_none_of_its_links(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    worker.claim(claim.id)

    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, SUCCESS, [new(), new(), PlainMessage("plain", b"", b"")])

    assert execute(store, "select count(*) as runs from durable.run") == [{"runs": 1}]
    assert execute(store, "select id from durable.outbox") == []


def links_of(store: Store, chain: str) -> list[bytes]:
    rows = store.chains.links(chain, 10_000)
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    return [bytes(row["signature"]) for row in rows]


def test_links_of_a_chain_are_stored_with_the_runs_that_name_it_and_once(store: Store) -> None:
    links = tuple(b"%d" % number for number in range(bulk.ROWS + 1))
    chain = NewChain(str(uuid.uuid4()), "root", "application/json", "utf-8", links)
    other = NewChain(str(uuid.uuid4()), "other", "application/json", "utf-8", (b"1",))

    store.runs.enqueue(new(chains=(chain,)))
    store.runs.enqueue_bulk([new(chains=(chain,)), new(), new(chains=(other, chain))])

    assert links_of(store, chain.id) == list(links)
    assert links_of(store, other.id) == [b"1"]
    assert [bytes(row["signature"]) for row in store.chains.link(chain.id, 7)] == [b"6"]
    assert execute(store, "select root from durable.chain order by root") == [
        {"root": "other"},
        {"root": "root"},
    ]


def test_a_superseded_attempt_stores_no_links_of_a_chain(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.release(claim.key, claim.fence, Release("released", NOW))
    chain = NewChain(str(uuid.uuid4()), claim.id, "application/json", "utf-8", (b"1", b"2"))

    with pytest.raises(LeaseLostError):
        store.runs.finish(claim.key, claim.fence, SUCCESS, [new(chains=(chain,))])

    assert execute(store, "select id from durable.chain") == []
    assert execute(store, "select chain from durable.chain_link") == []


def test_a_run_that_cannot_be_stored_leaves_no_links_of_a_chain(store: Store) -> None:
    chain = NewChain(str(uuid.uuid4()), "root", "application/json", "utf-8", (b"1",))

    with pytest.raises(DataError):
        store.runs.enqueue(new(task="no\x00text", chains=(chain,)))

    assert execute(store, "select chain from durable.chain_link") == []


def test_a_statement_stores_no_more_than_some_megabytes() -> None:
    body = bytes(bulk.BYTES // 2)
    runs = [new(body=body), new(body=body), new(body=body), new(body=3 * body), new(), *[new()] * bulk.ROWS]

    assert [len(batch) for batch in bulk.batches(runs, lambda run: len(run.body))] == [2, 1, 1, bulk.ROWS, 1]
