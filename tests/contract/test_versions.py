"""Runs that end on the code they began with: a worker of another version lets them wait for one of theirs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
from contending import keeper
from inspecting import Worker, execute

from celery_durable.config import Settings, load
from celery_durable.exceptions import ConfigurationError
from celery_durable.operations.findings import judge
from celery_durable.operations.wording import summary
from celery_durable.run import Refusal
from celery_durable.store import Store
from celery_durable.store.health import HealthStore
from celery_durable.store.writes import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def versioned(store: Store) -> Iterator[Callable[[str | None], Worker]]:
    """Return a function that makes a worker which executes runs of one version only, or of any."""
    stores: list[Store] = []

    def make(version: str | None) -> Worker:
        policy: Any = "any" if version is None else "same"
        stores.append(Store(store.url, Settings(version=version, version_policy=policy)))
        worker = Worker(stores[-1])
        execute(store, "update durable.worker set code = %s where id = %s", version, worker.id)
        return worker

    yield make
    for one in stores:
        one.close()


def ask(worker: Worker, run_id: str) -> Any:
    outcome = worker.store.runs.claim(run_id, fence=uuid.uuid4(), token=worker.token, pid=7, revision=0)
    return outcome if isinstance(outcome, Refusal) else outcome[0]


def waiting(store: Store, run_id: str) -> tuple[str, str | None, int]:
    (run,) = execute(
        store,
        "select state, reason, extract(epoch from due - durable.clock())::int as seconds from durable.run"
        " where id = %s",
        run_id,
    )
    return run["state"], run["reason"], run["seconds"]


def test_a_worker_claims_runs_of_its_version_and_of_none(store: Store, versioned: Any) -> None:
    worker = versioned("2")

    assert ask(worker, worker.enqueue(version="2")).attempt == 1
    assert ask(worker, worker.enqueue(version=None)).attempt == 1


def test_a_run_of_another_version_waits_and_comes_back_soon_where_a_worker_of_it_is_alive(
    store: Store, versioned: Any
) -> None:
    new, old = versioned("2"), versioned("1")
    run_id = new.enqueue(version="1")

    assert ask(new, run_id) is Refusal.VERSION

    assert waiting(store, run_id) == ("waiting", "version", 1)
    execute(store, "update durable.run set due = durable.clock()")
    with keeper(store) as statements:
        assert [one.id for one in statements.wake(10)] == [run_id]
    assert ask(old, run_id).attempt == 1


def test_without_a_worker_of_its_version_it_is_tried_once_a_minute(store: Store, versioned: Any) -> None:
    new = versioned("2")
    run_id = new.enqueue(version="1")

    ask(new, run_id)

    assert waiting(store, run_id) == ("waiting", "version", 60)


def test_a_worker_that_executes_any_version_takes_it(store: Store, versioned: Any) -> None:
    worker = versioned(None)

    assert ask(worker, worker.enqueue(version="1")).attempt == 1


def test_a_run_that_needs_a_slot_takes_none_where_it_may_not_be_executed(
    store: Store, versioned: Any
) -> None:
    new = versioned("2")
    run_id = new.enqueue(version="1", slot=Slot("key", 1))
    parameters = {"id": run_id, "task": None, "fence": uuid.uuid4(), "token": new.token, "pid": 7}

    outcome, _ = new.store.slots.claim({**parameters, "revision": 0})

    assert outcome is Refusal.VERSION
    assert waiting(store, run_id)[:2] == ("waiting", "version")


def test_show_and_doctor_say_what_is_missing(store: Store, versioned: Any) -> None:
    new = versioned("2")
    run_id = new.enqueue(version="1")
    ask(new, run_id)
    view = store.inspection.get(run_id)
    assert view is not None

    assert summary(view).startswith("waits for a worker of version 1; the next try until ")
    health = HealthStore(store.connections, schema="durable").examine()
    (stranded,) = [one for one in judge(health, Settings()) if one.check == "stranded"]
    assert stranded.level == "warning"
    assert "1 runs wait for a worker of their version, and none is alive" in stranded.message
    versioned("1")
    health = HealthStore(store.connections, schema="durable").examine()
    assert not [one for one in judge(health, Settings()) if one.check == "stranded"]


def test_a_resumed_run_is_of_the_version_that_resumes_it(store: Store, versioned: Any) -> None:
    """What failed is resumed after the code was mended, and belongs to the mended code."""
    old, new = versioned("1"), versioned("2")
    run_id = old.fail(old.claim(old.enqueue(version="1")))

    new.store.inspection.resume(
        [run_id], operation=uuid.uuid4(), actor=None, reason=None, check=new.store.settings.check, version="2"
    )

    assert ask(new, run_id).attempt == 2


def test_a_worker_tells_the_version_of_its_code(store: Store) -> None:
    with keeper(store) as statements:
        statements.register(uuid.uuid4(), hostname="a", pid=1, version="0.1", code="2026-05")

    assert [row["code"] for row in execute(store, "select code from durable.worker")] == ["2026-05"]


def test_a_version_may_be_that_of_an_installed_package() -> None:
    assert load({"durable_version": "package:pytest"}).version == pytest.__version__
    with pytest.raises(ConfigurationError, match="'nobody-has-this', which is not installed here"):
        load({"durable_version": "package:nobody-has-this"})


def test_the_policy_needs_a_version() -> None:
    with pytest.raises(ConfigurationError, match="needs durable_version"):
        load({"durable_version_policy": "same"})
    with pytest.raises(ConfigurationError, match="one of 'any', 'same'"):
        load({"durable_version_policy": "other"})
    assert load({"durable_version": "1"}).only_version is None
    assert load({"durable_version": "1", "durable_version_policy": "same"}).only_version == "1"
