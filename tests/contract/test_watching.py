"""What pages and metrics read: bounded, and the same from an event loop as from a thread."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import wait_until_blocked
from inspecting import Worker, execute, open_transaction

from celery_durable.exceptions import SchemaMissingError, StoreUnavailableError
from celery_durable.flower.live import LIST, Live
from celery_durable.run import RunState
from celery_durable.store import questions
from celery_durable.store.inspection import Filter
from celery_durable.store.questions import list_runs, whole_run
from celery_durable.store.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from celery_durable.store import Store

LEASE = timedelta(seconds=30)
GRACE = timedelta(seconds=60)


class Loop:
    """An event loop with a reader on it."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.watching = Watching(store.url, schema=options.pop("schema", "durable"), **options)
        self.loop = asyncio.new_event_loop()

    def run(self, work: Callable[[Watching], Awaitable[Any]]) -> Any:
        return self.loop.run_until_complete(work(self.watching))  # type: ignore[arg-type]

    def rows(self, name: str, **parameters: Any) -> Any:
        return self.run(lambda watching: watching.rows(name, **parameters))

    def stuck(self) -> set[int]:
        return {row["key"] for row in self.rows("stuck", lease=LEASE, grace=GRACE, most=100)}

    def close(self) -> None:
        self.loop.run_until_complete(self.watching.close())
        self.loop.close()


@pytest.fixture
def loop(store: Store) -> Iterator[Loop]:
    made = Loop(store)
    yield made
    made.close()


def ids(store: Store, **wanted: Any) -> list[str]:
    return [run.id for run in store.inspection.list(Filter(**wanted)).runs]


def test_an_event_loop_reads_what_a_thread_reads(store: Store, loop: Loop) -> None:
    worker = Worker(store)
    claim = worker.start("story")
    worker.step(claim, "fetch", 1)
    worker.retry(claim)
    sql = loop.watching.queries("inspection")

    page = loop.run(lambda watching: watching.ask(list_runs(sql, Filter(), 50, None)))
    run = loop.run(lambda watching: watching.ask(whole_run(sql, "story")))

    assert [one.id for one in page.runs] == ids(store) == ["story"]
    expected = store.inspection.get("story")
    assert expected is not None
    assert (run.attempts, run.steps, run.due) == (expected.attempts, expected.steps, expected.due)


def test_list_filters_by_version_tags_past_workers_and_text(store: Store) -> None:
    worker, other = Worker(store), Worker(store, "worker@two")
    old = worker.enqueue(version="1")
    tagged = worker.start(version="2", task="billing.charge")
    store.runs.annotate(tagged.key, tagged.fence, tags='{"customer": "42", "tier": "gold"}', progress=None)
    elsewhere = other.fail(other.start(), error="ValueError: 100%_sure\\no")

    assert ids(store, version="1") == [old]
    assert ids(store, tags='{"customer": "42"}') == [tagged.id]
    assert ids(store, tags='{"customer": "43"}') == []
    assert ids(store, ran_on="worker@two") == [elsewhere]
    assert ids(store, text="CHARGE") == [tagged.id]
    assert ids(store, text="gold") == [tagged.id]
    assert ids(store, text="100%_sure\\") == [elsewhere]
    assert ids(store, text="1000_sure") == []
    assert ids(store, ids=[old, elsewhere]) == [elsewhere, old]


def test_a_filter_without_an_index_looks_through_a_window_and_goes_on_behind_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "_WINDOW", 3)
    worker = Worker(store)
    first = worker.enqueue(version="old")
    for _ in range(7):
        worker.enqueue(version="new")

    pages, before = [], None
    while True:
        page = store.inspection.list(Filter(version="old"), limit=2, before=before)
        pages.append(page)
        before = page.next
        if before is None:
            break

    assert [[run.id for run in page.runs] for page in pages] == [[], [], [first]]
    assert [page.partial for page in pages] == [True, True, False]


def test_stuck_runs_are_those_whose_worker_is_gone_or_silent_and_those_overdue(
    store: Store, loop: Loop
) -> None:
    worker, silent, gone = Worker(store), Worker(store, "worker@two"), Worker(store, "worker@three")
    healthy = worker.start()
    worker.retry(worker.start())
    worker.enqueue()
    frozen, orphan = silent.start(), gone.start()
    overdue = worker.start()
    worker.retry(overdue)
    gone.vanish()
    execute(store, "update durable.worker set beat_at = now() - interval '1 minute' where id = %s", silent.id)
    execute(store, "update durable.run set due = now() - interval '2 minutes' where key = %s", overdue.key)

    assert loop.stuck() == {frozen.key, orphan.key, overdue.key}
    assert healthy.key not in loop.stuck()


def test_a_run_is_stuck_while_no_live_worker_has_the_version_that_alone_may_execute_it(
    store: Store, loop: Loop
) -> None:
    worker, old = Worker(store), Worker(store, "worker@old")
    execute(store, "update durable.worker set code = '2' where id = %s", worker.id)
    execute(store, "update durable.worker set code = '1' where id = %s", old.id)
    stranded, other = worker.enqueue(version="1"), worker.enqueue(version="2")
    for run_id in (stranded, other):
        execute(
            store,
            "update durable.run set state = 'waiting', reason = 'version', published_at = null,"
            " due = now() + interval '1 minute' where id = %s",
            run_id,
        )
    (key,) = execute(store, "select key from durable.run where id = %s", stranded)

    assert loop.stuck() == set()
    execute(store, "update durable.worker set beat_at = now() - interval '1 minute' where id = %s", old.id)
    assert loop.stuck() == {key["key"]}
    old.vanish()
    assert loop.stuck() == {key["key"]}
    execute(store, "update durable.run set due = now() - interval '2 minutes' where id = %s", stranded)
    assert [row["key"] for row in loop.rows("stuck", lease=LEASE, grace=GRACE, most=100)] == [key["key"]]


def test_tallies_count_no_further_than_asked(store: Store, loop: Loop) -> None:
    worker = Worker(store)
    for _ in range(5):
        worker.enqueue()
    worker.retry(worker.start())
    rows = loop.rows("tally", states=["pending", "waiting", "failed"], most=3)

    assert sorted((row["state"], row["reason"], row["runs"]) for row in rows) == [
        ("pending", None, 3),
        ("waiting", "retry", 1),
    ]


def test_the_steps_tried_again_most_are_told_however_little_time_they_took(store: Store, loop: Loop) -> None:
    worker = Worker(store)
    claim = worker.start(task="many.steps")
    for number in range(110):
        worker.step(claim, f"slow_{number}", number + 1, seconds=10.0 + number)
    worker.step(claim, "nervous", 200, tries=40, seconds=0.001)

    rows = loop.rows("hot_steps", most=100)

    assert len(rows) == 101
    assert (rows[0]["step"], rows[-1]["step"], rows[-1]["more_tries"]) == ("slow_109", "nervous", 39)


def test_tasks_are_named_once_however_many_runs_they_have(store: Store, loop: Loop) -> None:
    worker = Worker(store)
    for task in ("b", "a", "b", "c", "b"):
        worker.enqueue(task=task)

    assert [row["task"] for row in loop.rows("tasks", most=10)] == ["a", "b", "c"]
    assert [row["task"] for row in loop.rows("tasks", most=2)] == ["a", "b"]


def test_questions_that_are_asked_at_the_same_time_open_one_pool(store: Store) -> None:
    async def ask_many(watching: Watching) -> int:
        answers = await asyncio.gather(*(watching.rows("tasks", most=1) for _ in range(20)))
        return len(answers)

    loop = Loop(store, size=2)
    try:
        assert loop.run(ask_many) == 20
        mine = (
            "select count(*) as open from pg_stat_activity where application_name = 'celery-durable flower'"
        )
        assert execute(store, f"{mine} and datname = current_database()")[0]["open"] <= 2
    finally:
        loop.close()


def test_a_missing_schema_says_what_to_run(store: Store) -> None:
    loop = Loop(store, schema="elsewhere")
    try:
        with pytest.raises(SchemaMissingError, match="durable init"):
            loop.rows("tasks", most=1)
    finally:
        loop.close()


def test_a_question_that_is_not_answered_in_time_is_given_up_and_the_next_one_is_answered(
    store: Store,
) -> None:
    loop = Loop(store, patience=0.3)
    try:
        with open_transaction(store) as blocking:
            blocking.execute("lock table durable.run in access exclusive mode")
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"within 0\.3 s"):
                loop.rows("tasks", most=1)
            assert time.monotonic() - started < 20
        assert loop.rows("tasks", most=1) == []
    finally:
        loop.close()


def test_every_listener_of_a_run_learns_of_its_changes_from_one_look(store: Store, loop: Loop) -> None:
    worker = Worker(store)
    claim, other = worker.start("watched"), worker.start("other")

    async def told(watching: Watching) -> tuple[int, list[bool]]:
        live = Live(watching, 30.0, 0.05)
        with (
            live.listening("watched") as first,
            live.listening("watched") as second,
            live.listening("other") as third,
            live.listening(LIST) as all_of_them,
        ):
            for queue in (first, second, third, all_of_them):
                assert await asyncio.wait_for(queue.get(), 5) == "changed"  # what everybody starts from
            before = live.looks
            in_thread = asyncio.to_thread(worker.step, claim, "fetch", 1)
            await in_thread
            assert (
                await asyncio.wait_for(first.get(), 5) == await asyncio.wait_for(second.get(), 5) == "changed"
            )
            await asyncio.to_thread(worker.succeed, claim)
            await asyncio.wait_for(first.get(), 5)
            assert await asyncio.wait_for(all_of_them.get(), 5) == "changed"
            looks, quiet = live.looks - before, third.empty()
        await asyncio.wait_for(live.ended(), 5)
        return looks, [quiet]

    looks, (quiet,) = loop.run(told)

    assert quiet
    assert looks < 100
    assert other.id


def test_nobody_looks_while_nobody_listens(store: Store, loop: Loop) -> None:
    async def looked(watching: Watching) -> int:
        live = Live(watching, 30.0, 0.02)
        with live.listening(LIST) as queue:
            await asyncio.wait_for(queue.get(), 5)
        await asyncio.wait_for(live.ended(), 5)
        return live.listeners

    assert loop.run(looked) == 0


def test_a_retry_is_made_at_once_for_a_waiting_run_and_for_no_other(store: Store) -> None:
    worker = Worker(store)
    waiting = worker.retry(worker.start())
    running = worker.start().id
    operation = uuid.uuid4()

    def retry() -> list[tuple[str, RunState | None, bool]]:
        changes = store.inspection.retry_now(
            [waiting, running], operation=operation, actor="ada", reason="a test", check=LEASE
        )
        return [(change.id, change.state, change.changed) for change in changes]

    first = retry()
    again = retry()  # the same write, repeated after a lost answer

    assert first == again == [(waiting, RunState.PENDING, True), (running, RunState.RUNNING, False)]
    run = store.inspection.get(waiting)
    assert run is not None
    assert [(event.kind, event.actor, event.detail["reason"]) for event in run.events] == [
        ("retried now", "ada", "a test")
    ]


def test_a_retry_made_at_once_while_the_keeper_wakes_the_run_wakes_it_once(store: Store) -> None:
    worker = Worker(store)
    waiting = worker.retry(worker.start())
    found: list[bool] = []

    def retry() -> None:
        changes = store.inspection.retry_now(
            [waiting], operation=uuid.uuid4(), actor="ada", reason=None, check=LEASE
        )
        found.append(changes[0].changed)

    with open_transaction(store) as keeper:
        keeper.execute("update durable.run set state = 'pending', reason = null where id = %s", [waiting])
        thread = threading.Thread(target=retry)
        thread.start()
        wait_until_blocked(store)
    thread.join()

    assert found == [False]
