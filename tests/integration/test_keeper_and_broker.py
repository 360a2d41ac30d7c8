"""The keeper when nobody is left to tell, when it cannot tell, and when the broker takes nothing."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from contending import keeper
from harness import brokers
from harness.waiting import eventually
from inspecting import Worker
from kombu.exceptions import OperationalError
from oddities.world import odd_world

from celery_durable import envelope
from celery_durable.exceptions import ExhaustedError
from celery_durable.keeper import Keeper, services

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.world import World

    from celery_durable.store import Store


@pytest.fixture(scope="module")
def idle(postgres_url: str) -> Iterator[World]:
    """Return a world in which nobody executes anything."""
    with odd_world(postgres_url, brokers.service("DURABLE_TEST_REDIS"), durable_lease=1.0) as world:
        yield world


@pytest.fixture
def breaker(monkeypatch: pytest.MonkeyPatch) -> envelope.Breaker:
    """Return a breaker for this test alone."""
    made = envelope.Breaker(first=60.0)
    monkeypatch.setattr(envelope, "breaker", made)
    return made


def store_of(world: World) -> Store:
    backend: Any = world.app.backend
    store: Store = backend.store
    return store


def exhausted(world: World) -> str:
    """Return a run with an error callback whose worker is gone and which is not to be recovered."""
    store, backend = store_of(world), world.app.backend
    result = world.send("plain", "x", link_error=world.app.tasks["on_error"].s())
    lost, leader = Worker(store), Worker(store)
    lost.claim(result.id)
    lost.vanish()
    with keeper(store) as statements:
        term = statements.lead(leader.token, timedelta(minutes=1)).term
        assert term is not None
        error = backend.error_meta(ExhaustedError())
        statements.recover_orphans(
            term, limit=10, max_recoveries=0, result=error, result_type=backend.content_type
        )
        statements.retire(leader.token)
    world.tables.rows("update durable.run set finished_at = finished_at - interval '1 minute'")
    assert world.tables.run(result.id)["unreported"]
    return result.id


def report(world: World) -> int:
    with keeper(store_of(world)) as statements:
        return services.report_endings(world.app, statements)


def test_the_keeper_calls_the_error_callback_of_a_run_whose_worker_is_gone(idle: World) -> None:
    run = exhausted(idle)

    assert report(idle) == 1

    (told,) = idle.ledger.entries("errback", run)
    assert told.detail == "ExhaustedError"
    assert report(idle) == 0


def test_an_error_callback_that_cannot_be_read_is_noted_with_the_run_and_not_tried_again(idle: World) -> None:
    run = exhausted(idle)
    idle.tables.rows("update durable.run set body = 'no json' where id = %s", run)

    assert report(idle) == 1

    (event,) = idle.tables.rows(
        "select e.kind, e.detail from durable.event e join durable.run r on r.key = e.run_key"
        " where r.id = %s and e.kind <> 'recovered'",
        run,
    )
    assert event["kind"] == "callbacks failed"
    assert "DecodeError" in event["detail"]["error"]
    assert report(idle) == 0
    assert idle.ledger.count("errback", run) == 0


def test_the_keeper_does_not_spin_while_a_timer_is_due_and_the_broker_is_away(
    idle: World, breaker: envelope.Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = idle.send("plain", "later", countdown=3600)
    idle.tables.rows("update durable.run set due = now() where id = %s", result.id)
    breaker.failed()
    serving = Keeper(idle.app, store_of(idle), token=uuid.uuid4(), hostname="keeper@here")
    turns: dict[str, int] = {"heartbeat": 0, "services": 0}

    def counted(name: str, thread: Any) -> None:
        run_once = thread.run_once

        def counting(statements: Any) -> dict[str, int]:
            turns[name] += 1
            counts: dict[str, int] = run_once(statements)
            return counts

        monkeypatch.setattr(thread, "run_once", counting)

    counted("heartbeat", serving.heartbeat)
    counted("services", serving.services)
    serving.start()
    try:
        eventually(lambda: turns["heartbeat"] >= 9, what=lambda: f"nine turns of the heartbeat: {turns}")
        spun = turns["services"]
        assert idle.tables.state(result.id) == "waiting"
        breaker.worked()
        idle.tables.wait_for_state(result.id, "pending")
    finally:
        serving.stop()

    assert 0 < spun <= 4  # the heartbeat's nine take a lease and a half, which is as many ticks


def test_a_second_publish_under_the_same_id_that_fails_leaves_the_first_run_alone(
    idle: World, breaker: envelope.Breaker
) -> None:
    result = idle.send("plain", "first")
    settings = {
        "durable_publish_errors": "raise",
        "task_publish_retry": False,
        "broker_transport_options": {"max_retries": 1, "interval_start": 0},
    }
    elsewhere = replace(idle.setup, broker="redis://127.0.0.1:1/0", settings=settings).app()
    try:
        for _ in range(2):
            with pytest.raises((OperationalError, OSError)):
                elsewhere.tasks["plain"].apply_async(("second",), task_id=result.id)
        with pytest.raises((OperationalError, OSError)):
            elsewhere.tasks["plain"].apply_async(("other",), task_id="never-sent")

        assert idle.tables.state(result.id) == "pending"
        assert idle.tables.state("never-sent") is None
    finally:
        elsewhere.backend.store.close()
        elsewhere.close()
