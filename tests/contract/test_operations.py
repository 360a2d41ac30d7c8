"""Operations in bulk, retention by hand, statistics and exports, on runs as workers leave them."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from contending import move_clock
from delivering import World, delivering
from inspecting import Worker, execute

import celery_durable as durable
from celery_durable.operations import Filter, Runs, selection
from celery_durable.run import RunState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

HOUR, WEEK = timedelta(hours=1), timedelta(weeks=1)


@durable.step
def price(article: str, *, secret: str) -> Decimal:
    return Decimal("1.10")


def order(article: str) -> str:
    return str(price(article, secret="s3cret"))


@pytest.fixture
def world(store: Store) -> Iterator[World]:
    with delivering(store) as made:
        yield made


@pytest.fixture
def runs(world: World) -> Runs:
    return Runs(world.app)


def failed(store: Store, count: int, **options: Any) -> list[str]:
    worker = Worker(store)
    return [worker.fail(worker.start(**options)) for _ in range(count)]


def test_a_filter_resumes_what_matches_and_can_be_resumed(store: Store, runs: Runs) -> None:
    wanted, other = failed(store, 3), failed(store, 1, task="media.other")
    worker = Worker(store)
    worker.succeed(worker.start())
    running = worker.start()

    outcomes = runs.resume_many(Filter(task="media.process"), reason="mended", actor="ada")

    assert [outcome.id for outcome in outcomes] == wanted[::-1]
    assert all(outcome.changed and outcome.state is RunState.PENDING for outcome in outcomes)
    assert runs.get(other[0]).state is RunState.FAILED
    assert runs.get(running.id).state is RunState.RUNNING
    (event,) = runs.get(wanted[0]).events
    assert (event.kind, event.actor, event.detail["reason"]) == ("resumed", "ada", "mended")


def test_a_dry_run_names_the_same_runs_and_changes_nothing(store: Store, runs: Runs) -> None:
    wanted = failed(store, 2)

    matching = runs.resume_many(Filter(states=[RunState.FAILED]), dry_run=True)

    assert [(one.id, one.before, one.changed) for one in matching] == [
        (run_id, RunState.FAILED, False) for run_id in wanted[::-1]
    ]
    assert runs.get(wanted[0]).state is RunState.FAILED


def test_an_empty_filter_is_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match="An empty filter would change every run"):
        runs.resume_many(Filter())
    with pytest.raises(TypeError, match="is one id"):
        runs.resume_many("3f2a")
    with pytest.raises(ValueError, match="An empty filter"):
        runs.cancel_many(Filter(), dry_run=True)
    with pytest.raises(ValueError, match="give it a Filter instead of ids"):
        runs.resume_many(["x"], dry_run=True)


@pytest.mark.parametrize(("odd", "error"), [(5, TypeError), (None, TypeError), ("a\0b", ValueError)])
def test_what_can_be_no_runs_id_is_an_error_that_says_so(
    runs: Runs, odd: Any, error: type[Exception]
) -> None:
    for ask in (runs.cancel, runs.resume, runs.retry_now, runs.get, runs.export, runs.fork, runs.find):
        with pytest.raises(error, match="is no id of a run"):
            ask(odd)
    with pytest.raises(error, match="is no id of a run"):
        runs.signal(odd, "approved")
    with pytest.raises(error, match="is no id of a run"):
        runs.cancel_many(["a", odd])


def test_a_result_in_the_place_of_an_id_is_told_of_its_own(runs: Runs, world: World) -> None:
    result: Any = world.task(order).delay("a book")

    with pytest.raises(TypeError, match=r"its id does \(`result.id`\)"):
        runs.cancel(result)
    with pytest.raises(TypeError, match="is no list"):
        runs.cancel_many(result)


@pytest.mark.parametrize("told", [{"text": ""}, {"in_errors": False}, {"tags": "{}"}])
def test_a_filter_is_empty_too_whose_values_say_nothing(
    store: Store, runs: Runs, told: dict[str, Any]
) -> None:
    worker = Worker(store)
    pending = worker.enqueue()

    for change in (runs.cancel_many, runs.resume_many, runs.retry_now_many):
        with pytest.raises(ValueError, match="An empty filter would change every run"):
            change(Filter(**told))

    assert runs.get(pending).state is RunState.PENDING


@pytest.mark.parametrize("none", [{"states": []}, {"states": ()}, {"ids": []}, {"keys": []}])
def test_a_filter_that_allows_no_state_and_no_id_matches_nothing(
    store: Store, runs: Runs, none: dict[str, Any]
) -> None:
    worker = Worker(store)
    pending = worker.enqueue()

    assert runs.cancel_many(Filter(**none)) == []
    assert runs.get(pending).state is RunState.PENDING
    assert store.inspection.list(Filter(**none)).runs == ()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"tags": "{"}, "is not JSON"),
        ({"tags": {"a": "b"}}, "is not JSON"),
        ({"tags": "[1]"}, "no JSON object"),
        ({"since": timedelta(days=4e7)}, "within a hundred years"),
        ({"until": timedelta(days=-4e7)}, "within a hundred years"),
    ],
)
def test_a_filter_that_no_run_can_be_asked_for_says_what_is_wrong(told: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Filter(**told)


def test_a_filter_for_states_that_cannot_be_resumed_matches_nothing(store: Store, runs: Runs) -> None:
    worker = Worker(store)
    worker.succeed(worker.start())

    assert runs.resume_many(Filter(states=[RunState.SUCCEEDED])) == []


def test_a_bulk_goes_batch_by_batch_and_says_how_far_it_is(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "AT_ONCE", 2)
    failed(store, 5)
    seen: list[int] = []

    outcomes = runs.resume_many(Filter(task="media.process"), progress=seen.append)

    assert len(outcomes) == 5
    assert seen == [2, 4, 5]


def test_a_run_that_fails_again_at_once_is_resumed_once(
    store: Store, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a bulk resume would go on for ever."""
    monkeypatch.setattr(selection, "AT_ONCE", 1)
    failed(store, 3)
    worker = Worker(store)

    def fail_again(_: int) -> None:
        for run in runs.list(state="pending").runs:
            worker.fail(worker.claim(run.id))

    outcomes = runs.resume_many(Filter(states=[RunState.FAILED]), progress=fail_again)

    assert len(outcomes) == 3
    assert {run.generation for run in runs.list(state="failed").runs} == {1}


def test_a_filter_cancels_what_is_not_over(store: Store, runs: Runs) -> None:
    worker = Worker(store)
    pending, running, waiting = worker.enqueue(), worker.start().id, worker.retry(worker.start())
    over = worker.succeed(worker.start())

    runs.cancel_many(Filter(task="media.process"))

    assert runs.get(pending).state is RunState.CANCELLED
    assert runs.get(waiting).state is RunState.CANCELLED
    assert runs.get(running).cancel_requested
    assert runs.get(over).state is RunState.SUCCEEDED


def test_prune_deletes_old_runs_and_a_dry_run_only_counts_them(store: Store) -> None:
    failed(store, 3)
    worker = Worker(store)
    worker.start()
    move_clock(store, "8 days")
    with delivering(store) as world:
        runs = Runs(world.app)
        kept = failed(store, 1)[0]

        assert runs.prune(older_than=WEEK, dry_run=True) == 3
        seen: list[int] = []
        assert runs.prune(older_than=WEEK, progress=seen.append) == 3

        assert seen == [3]
        assert runs.prune(older_than=WEEK) == 0
        assert len(runs.list().runs) == 2
        assert runs.get(kept)


def test_prune_counts_as_it_deletes_whole_trees(store: Store) -> None:
    worker = Worker(store)
    worker.succeed(worker.start("root"))
    worker.succeed(worker.start("child", root="root"))
    worker.succeed(worker.start("other"))
    worker.start("busy", root="other")
    move_clock(store, "8 days")
    with delivering(store) as world:
        runs = Runs(world.app)

        assert runs.prune(older_than=WEEK, dry_run=True) == 2
        assert runs.prune(older_than=WEEK) == 2


def test_without_a_retention_an_age_has_to_be_named(store: Store) -> None:
    with delivering(store, result_expires=None) as world:
        with pytest.raises(durable.ConfigurationError, match="name an age"):
            Runs(world.app).prune()
        assert Runs(world.app).prune(older_than=HOUR) == 0


def test_stats_tell_states_queues_tasks_and_workers(store: Store, runs: Runs) -> None:
    worker = Worker(store, "worker@two")
    worker.enqueue(queue="slow")
    worker.start()
    for _ in range(3):
        worker.succeed(worker.start(task="media.fast"))
    worker.fail(worker.start(task="media.fast"))

    stats = runs.stats(window=HOUR)

    assert {count.state: count.runs for count in stats.states} == {
        "pending": 1,
        "running": 1,
        "succeeded": 3,
        "failed": 1,
    }
    assert [(queue.queue, queue.runs) for queue in stats.queues] == [("slow", 1)]
    (task,) = stats.tasks
    assert (task.task, task.succeeded, task.failed, task.cancelled) == ("media.fast", 3, 1, 0)
    assert task.median_seconds is not None
    assert {one.hostname: one.runs for one in stats.workers} == {"worker@one": 0, "worker@two": 1}


def test_an_export_holds_the_whole_history_as_plain_json(world: World, runs: Runs) -> None:
    run_id = world.run(world.task(order), "a book")

    document = json.loads(json.dumps(runs.export(run_id)))

    run = document["run"]
    assert document["format"] == 1
    assert (run["id"], run["state"], run["celery_state"]) == (run_id, "succeeded", "SUCCESS")
    assert run["payloads"]["args"] == ["a book"]
    assert run["payloads"]["result"] == "1.10"
    assert [step["output"] for step in run["steps"]] == [{"~decimal": "1.10"}]
    assert [attempt["outcome"] for attempt in run["attempts"]] == ["succeeded"]


def test_an_export_without_payloads_holds_none(world: World, runs: Runs) -> None:
    run_id = world.run(world.task(order), "a very secret book")

    document = runs.export(run_id, payloads=False)

    assert "payloads" not in document["run"]
    assert "output" not in document["run"]["steps"][0]


def test_every_payload_of_an_export_passes_the_redaction(world: World, runs: Runs) -> None:
    run_id = world.run(world.task(order), "a book")
    paths: list[tuple[str, ...]] = []

    def redact(path: tuple[str, ...], value: Any) -> Any:
        paths.append(path)
        return "***"

    document = runs.export(run_id, redact=redact)

    assert ("steps", "price", "output") in paths
    assert set(document["run"]["payloads"].values()) == {"***"}
    assert document["run"]["steps"][0]["output"] == "***"


def test_an_export_shows_what_it_cannot_read_as_bytes(world: World, runs: Runs) -> None:
    run_id = world.run(world.task(order), "a book")
    execute(world.store, "update durable.checkpoint set output = '\\x80'")

    (step,) = runs.export(run_id)["run"]["steps"]

    assert step["output"]["base64"] == "gA=="
