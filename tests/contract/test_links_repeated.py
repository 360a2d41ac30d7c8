"""A finish whose answer was lost is done again: what it starts is still to be sent, and kept once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inspecting import Worker, execute

from celery_durable.run import RunState
from celery_durable.store.runs import Finish, NewRun, PlainMessage

if TYPE_CHECKING:
    from celery_durable.store import Store

SUCCESS = Finish(RunState.SUCCEEDED, b"1", "application/json")
RUN = NewRun(id="chain-1", task="media.publish", queue="celery", priority=None, message=b"{}", body=b"[]")
PLAIN = PlainMessage("plain-1", b"{}", b"[]")


def test_links_of_a_finish_whose_answer_was_lost_are_still_to_be_sent_and_are_kept_once(store: Store) -> None:
    claim = Worker(store).start()
    lost = store.runs.finish(claim.key, claim.fence, SUCCESS, [RUN, PLAIN]).links

    answer = store.runs.finish(claim.key, claim.fence, SUCCESS, [RUN, PLAIN]).links

    assert answer == lost
    assert answer[0] == "pending"
    assert execute(store, "select key::text, id from durable.outbox") == [{"key": answer[1], "id": "plain-1"}]
    assert execute(store, "select count(*) as runs from durable.run where id = 'chain-1'") == [{"runs": 1}]


def test_a_link_that_a_worker_has_taken_meanwhile_is_not_sent_again(store: Store) -> None:
    worker = Worker(store)
    claim = worker.start()
    store.runs.finish(claim.key, claim.fence, SUCCESS, [RUN])
    worker.claim(RUN.id)

    assert store.runs.finish(claim.key, claim.fence, SUCCESS, [RUN]).links == [None]
