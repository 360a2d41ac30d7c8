"""The schema may have any name, and several of them may share a database."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from contending import keeper, step_write
from explaining import EVERY_QUERY, given, plan_of
from inspecting import Worker

from celery_durable.config import Settings
from celery_durable.run import Refusal
from celery_durable.store import Store, queries
from celery_durable.store.inspection import Filter
from celery_durable.store.queries import with_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["jobs", 'Jobs of "Ada"']
FILTERS = ["states", "task", "reason", "has_error", "has_no_error", "worker", "since", "until"]


@pytest.fixture
def stores(database_url: str) -> Iterator[list[Store]]:
    """Return two stores with schemas of their own in one database; there is none called `durable`."""
    made = [Store(database_url, Settings(schema=name)) for name in NAMES]
    for store in made:
        store.migrate()
    yield made
    for store in made:
        store.close()


def test_every_statement_works_in_a_schema_of_another_name(stores: list[Store]) -> None:
    for store in stores:
        store.transactions(store.url).install()
        with store.connections.dedicated() as connection:
            for noun, name in EVERY_QUERY:
                sql = with_lines(queries.load(noun, store.settings.schema)[name], FILTERS)
                assert plan_of(connection, sql, given(noun, name, sql))


def test_nothing_is_made_outside_the_schemas(stores: list[Store]) -> None:
    with stores[0].connections.dedicated() as connection:
        rows = connection.execute(
            "select n.nspname::text as schema, count(*) as n from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' group by n.nspname"
        ).fetchall()

    assert {row["schema"] for row in rows} == set(NAMES)
    assert len({row["n"] for row in rows}) == 1


def test_runs_of_two_schemas_do_not_know_each_other(stores: list[Store]) -> None:
    one, other = (Worker(store) for store in stores)
    claim = one.start("same-id")
    one.step(claim, "download", 1)
    other.enqueue("same-id")

    outcome = stores[1].runs.claim("same-id", fence=uuid.uuid4(), token=other.token, pid=1, revision=0)

    assert isinstance(outcome, tuple)
    assert outcome[1] == []
    assert (
        stores[0].runs.claim("same-id", fence=uuid.uuid4(), token=one.token, pid=1, revision=0)
        is Refusal.OWNED
    )


def test_a_run_lives_and_dies_in_a_schema_of_another_name(stores: list[Store]) -> None:
    for store in stores:
        worker = Worker(store)
        waiting = worker.enqueue(countdown=timedelta(hours=1))
        claim = worker.start("run")
        store.runs.checkpoint(claim.key, claim.fence, step_write("download", 1))
        store.runs.checkpoint(claim.key, claim.fence, step_write("cheap", 2), relaxed=True)
        worker.succeed(claim)
        store.results.store("plain", "SUCCESS", b"1", "json", None, None)

        assert [run.id for run in store.inspection.list(Filter()).runs] == ["run", waiting]
        assert [row["state"] for row in store.results.get(["run", "plain"])] == ["succeeded", None]
        with keeper(store) as statements:
            term = statements.lead(worker.token, timedelta(minutes=1)).term
            assert term == 1
            assert statements.look(term).next_timer is not None
            assert statements.wake(10) == []
            assert statements.prune(timedelta(0), 10) == 1
