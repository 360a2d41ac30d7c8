"""The result backend: results can be read, joined and forgotten, and expire, of runs and of plain tasks."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from celery import Celery, Task, group, states
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TimeoutError as ResultTimeoutError
from celery.result import AsyncResult, GroupResult
from harness import brokers
from harness.waiting import eventually
from semantics.registry import KINDS

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semantics.world import Semantics

both = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore::celery.platforms.SecurityWarning")


@dataclass
class Point:
    """A value that only pickle carries as it is."""

    x: int
    y: int


# -- reading ----------------------------------------------------------------------------------------------


@both
def test_get_waits_no_longer_than_asked(on_redis: Semantics, kind: str) -> None:
    gate = f"timeout-{kind}"
    on_redis.gates.close(gate)
    result = on_redis.task(kind, "wait").delay(gate)
    asked: list[int] = []
    with pytest.raises(ResultTimeoutError):
        result.get(timeout=0.1, on_interval=lambda: asked.append(1))
    assert asked
    on_redis.gates.open(gate)
    assert result.get(timeout=20, callback=None, propagate=False) == "passed"


@both
def test_the_extended_result_names_task_arguments_worker_and_lineage(on_redis: Semantics, kind: str) -> None:
    signature = on_redis.task(kind, "echo").s(1, "two", three=3)
    signature.stamp(customer="seven")
    result = signature.apply_async()
    assert result.get(timeout=20) == [[1, "two"], {"three": 3}]
    assert (result.name, result.args, result.kwargs) == (f"{kind}.echo", [1, "two"], {"three": 3})
    assert (result.worker, result.retries, result.queue) == (on_redis.worker.name, 0, on_redis.setup.queue)
    meta = on_redis.app.backend.get_task_meta(result.id)
    assert meta["stamped_headers"] == ["customer"]
    assert result.date_done.tzinfo is not None
    assert abs((result.date_done - on_redis.tables.one("select clock_timestamp()")).total_seconds()) < 60


@both
def test_a_failed_result_is_extended_too(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "auto").delay(9)
    assert isinstance(result.get(timeout=20, propagate=False), KeyError)
    assert (result.name, result.args, result.retries) == (f"{kind}.auto", [9], 2)


@both
def test_many_threads_may_wait_for_many_results(on_redis: Semantics, kind: str) -> None:
    results = [on_redis.task(kind, "add").delay(n, n) for n in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda one: one.get(timeout=20), results)) == [2 * n for n in range(12)]


def test_an_unknown_id_is_pending_and_does_not_exist(on_redis: Semantics) -> None:
    unknown = on_redis.app.AsyncResult("nobody-sent-this")
    assert (unknown.state, unknown.result, unknown.traceback) == (states.PENDING, None, None)
    assert not on_redis.app.backend.task_result_exists(unknown.id)


def test_a_run_exists_before_any_worker_has_taken_it(on_redis: Semantics) -> None:
    result = on_redis.task("durable", "add").apply_async((1, 2), countdown=60)
    assert result.state == states.PENDING
    assert on_redis.app.backend.task_result_exists(result.id)
    result.revoke()
    eventually(lambda: result.state == states.REVOKED)


def test_the_first_success_of_a_plain_task_stays(on_redis: Semantics) -> None:
    backend = on_redis.app.backend
    backend.store_result("twice", "first", states.SUCCESS)
    backend.store_result("twice", ValueError("late"), states.FAILURE)
    backend.store_result("twice", "second", states.SUCCESS)
    assert on_redis.app.AsyncResult("twice").get(timeout=1) == "first"


def test_a_late_write_from_elsewhere_changes_nothing_of_a_run(on_redis: Semantics) -> None:
    result = on_redis.task("durable", "add").delay(1, 2)
    assert result.get(timeout=20) == 3
    on_redis.app.backend.store_result(result.id, "forged", states.SUCCESS)
    on_redis.app.backend.mark_as_failure(result.id, ValueError("forged"))
    assert on_redis.app.AsyncResult(result.id).get(timeout=1) == 3


def test_a_state_may_be_stored_from_outside_for_a_plain_task(on_redis: Semantics) -> None:
    on_redis.app.backend.store_result("outside", {"done": 4}, "PROGRESS")
    result = on_redis.app.AsyncResult("outside")
    assert (result.state, result.info) == ("PROGRESS", {"done": 4})


# -- groups -----------------------------------------------------------------------------------------------


@both
def test_a_saved_group_is_restored_with_its_results_and_deleted(on_redis: Semantics, kind: str) -> None:
    result = group(on_redis.task(kind, "add").s(n, n) for n in range(3)).apply_async()
    result.save()
    restored = GroupResult.restore(result.id, app=on_redis.app)
    assert restored == result
    assert restored.get(timeout=20) == [0, 2, 4]
    result.delete()
    assert GroupResult.restore(result.id, app=on_redis.app) is None


@both
def test_a_saved_group_of_nested_groups_keeps_its_shape(on_redis: Semantics, kind: str) -> None:
    add = on_redis.task(kind, "add")
    inner = group(add.s(1, 1), add.s(2, 2)).apply_async()
    outer = GroupResult("outer-group", [inner, add.delay(3, 3)])
    outer.save(backend=on_redis.app.backend)
    restored = GroupResult.restore("outer-group", app=on_redis.app)
    assert isinstance(restored.results[0], GroupResult)
    assert isinstance(restored.results[1], AsyncResult)


# -- forgetting and expiry --------------------------------------------------------------------------------


@both
def test_a_forgotten_result_is_gone_with_all_that_belongs_to_it(on_redis: Semantics, kind: str) -> None:
    result = on_redis.task(kind, "add").delay(2, 3)
    on_redis.outcome(result)
    result.forget()
    assert result.state == states.PENDING
    assert on_redis.tables.one("select count(*) from durable.run where id = %s", result.id) == 0
    assert on_redis.tables.one("select count(*) from durable.result where task_id = %s", result.id) == 0


def test_a_running_run_is_not_forgotten(on_redis: Semantics) -> None:
    on_redis.gates.close("forget")
    result = on_redis.task("durable", "wait").delay("forget")
    eventually(lambda: result.state == states.STARTED)
    result.forget()
    on_redis.gates.open("forget")
    assert result.get(timeout=20) == "passed"


def test_backend_cleanup_deletes_what_is_past_result_expires_and_nothing_else(on_redis: Semantics) -> None:
    old, new = ([on_redis.task(kind, "add").delay(1, 1) for kind in KINDS] for _ in range(2))
    waiting = on_redis.task("durable", "add").apply_async((1, 1), countdown=600)
    saved = group(on_redis.task("plain", "add").s(1, 1)).apply_async()
    for result in (*old, *new, saved):
        assert result.get(timeout=20)
    saved.save()
    age = "interval '2 days'"
    ids = [result.id for result in old]
    on_redis.tables.rows(
        "update durable.run set created_at = created_at - interval '2 days',"
        " finished_at = finished_at - interval '2 days' where id = any(%s)",
        ids,
    )
    on_redis.tables.rows(f"update durable.run set created_at = created_at - {age} where id = %s", waiting.id)
    on_redis.tables.rows(
        f"update durable.result set date_done = date_done - {age} where task_id = any(%s)", ids
    )
    on_redis.tables.rows(
        f"update durable.result_group set date_done = date_done - {age} where id = %s", saved.id
    )
    on_redis.app.tasks["celery.backend_cleanup"].delay().get(timeout=20)
    assert [on_redis.app.AsyncResult(one).state for one in ids] == [states.PENDING] * 2
    assert [on_redis.app.AsyncResult(one.id).get(timeout=1) for one in new] == [2, 2]
    assert on_redis.tables.state(waiting.id) == "waiting"
    assert GroupResult.restore(saved.id, app=on_redis.app) is None
    waiting.revoke()


# -- serializers, compression, URLs, pickling -------------------------------------------------------------


@contextmanager
def app_with(url: str, **settings: Any) -> Iterator[Celery]:
    """Yield an app with a plain and a durable `mirror`, and a worker in a thread."""
    broker = brokers.service("DURABLE_TEST_REDIS")
    with brokers.queue_of_ones_own(broker) as (queue, apart):
        app = Celery("mirrors", broker=broker, backend=f"durable+{url}", set_as_current=False)
        app.conf.update(
            durable_auto_migrate=True, durable_lease=5.0, task_default_queue=queue, **apart, **settings
        )
        for kind, base in (("plain", Task), ("durable", durable.DurableTask)):
            app.task(mirror, name=f"{kind}.mirror", base=base, autoretry_for=(), shared=False)
        app.finalize()
        try:
            with start_worker(app, pool="solo", perform_ping_check=False):
                yield app
        finally:
            close(app)


def close(app: Celery) -> None:
    """Close what the app has opened."""
    backend: Any = app.backend
    backend.store.close()
    app.close()


def mirror(value: Any) -> Any:
    if isinstance(value, str) and value == "raise":
        message = "mirrored"
        raise LookupError(message)
    return value


MOMENT = datetime.fromtimestamp(0, tz=timezone.utc)


@pytest.mark.parametrize(
    ("serializer", "values"),
    [
        ("pickle", [Point(1, 2), {1: (2, {3}), "when": MOMENT}]),
        ("yaml", [{"when": MOMENT, "numbers": [1, 2.5]}]),
    ],
)
def test_other_serializers_carry_values_and_errors(
    database_url: str, serializer: str, values: list[Any]
) -> None:
    if serializer == "yaml":
        pytest.importorskip("yaml")
    names = {"result_serializer": serializer, "task_serializer": serializer}
    with app_with(database_url, accept_content=[serializer, "json"], **names) as app:
        for task in (app.tasks[f"{kind}.mirror"] for kind in KINDS):
            assert [task.delay(value).get(timeout=20) for value in values] == values
            with pytest.raises(LookupError, match="mirrored"):
                task.delay("raise").get(timeout=20)


def test_results_are_compressed_and_read_by_who_does_not_compress(database_url: str) -> None:
    text = "the same again and again " * 1000
    with app_with(database_url, result_compression="gzip") as app:
        results = [app.tasks[f"{kind}.mirror"].delay(text) for kind in KINDS]
        assert [result.get(timeout=20) for result in results] == [text, text]
    if not hasattr(app.backend, "prepare_compression"):
        pytest.skip("this Celery has no result_compression")
    with psycopg.connect(database_url) as connection:
        lengths = connection.execute(
            "select length(result) from durable.run union all select length(result) from durable.result"
        ).fetchall()
    assert len(lengths) == 2
    assert all(length < len(text) / 10 for (length,) in lengths)
    reader = Celery("reader", backend=f"durable+{database_url}", set_as_current=False)
    assert [reader.AsyncResult(result.id).get(timeout=5) for result in results] == [text, text]
    close(reader)


def test_the_url_is_shown_without_its_password_and_survives_pickling() -> None:
    url = "durable+postgresql://user:secret@host/db"
    app = Celery("pickled", backend=url, set_as_current=False)
    assert "secret" not in app.backend.as_uri()
    assert app.backend.as_uri().startswith("durable+postgresql://user:")
    again = pickle.loads(pickle.dumps(app.backend))
    assert again.as_uri(include_password=True) == url
