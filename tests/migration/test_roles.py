"""The roles of docs/how-to/least-privilege-roles.md, made by the very statements of that page."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from contending import keeper, step_write
from explaining import given, queries_parameters
from harness.postgres import fresh_database
from inspecting import Worker

from celery_durable.config import Settings
from celery_durable.exceptions import SchemaMissingError, StoreError
from celery_durable.store import Store
from celery_durable.store.inspection import Filter
from celery_durable.store.messages import MessageStore
from celery_durable.store.questions import list_runs, whole_run
from celery_durable.store.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "least-privilege-roles.md"
ROLES = ("owner", "worker", "viewer")
DDL = [
    "create table durable.mine (x integer)",
    "alter table durable.run add column mine text",
    "drop table durable.event",
    "truncate durable.run",
    "create or replace function durable.clock() returns timestamptz language sql as 'select now()'",
    "drop schema durable cascade",
    "create schema mine",
    "alter table durable.run disable trigger all",
]
WRITES = [
    "insert into durable.event (run_key, kind) values (1, 'mine')",
    "update durable.run set state = 'cancelled'",
    "delete from durable.run",
    "select from durable.run for update",
]


class Roles:
    """Stores as each of the page's roles, under names that no other test uses."""

    def __init__(self, database_url: str) -> None:
        self.suffix = uuid.uuid4().hex[:8]
        self.url = database_url
        self.blocks = [
            self._renamed(sql) for sql in re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
        ]
        self.run(database_url, self.blocks[0])
        self.run(self.as_role("owner"), self.blocks[1])

    def _renamed(self, sql: str) -> str:
        return re.sub(r"\bdurable_(owner|worker|viewer)\b", rf"durable_\1_{self.suffix}", sql)

    def run(self, url: str, sql: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(sql.encode())

    def as_role(self, role: str) -> str:
        parts = urlsplit(self.url)
        place = parts.netloc.rpartition("@")[2]
        user = f"durable_{role}_{self.suffix}:{role}-secret"
        return urlunsplit(parts._replace(netloc=f"{user}@{place}"))

    def drop(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            for role in ROLES:
                connection.execute(f"drop owned by durable_{role}_{self.suffix} cascade".encode())
                connection.execute(f"drop role durable_{role}_{self.suffix}".encode())


@pytest.fixture(scope="module")
def roles(postgres_url: str) -> Iterator[Roles]:
    """Return the page's roles in a database whose schema is not filled yet."""
    with fresh_database(postgres_url) as url:
        made = Roles(url)
        yield made
        made.drop()


@pytest.fixture(scope="module")
def stores(roles: Roles) -> Iterator[dict[str, Store]]:
    """Return a store for each role; the owner has made the tables."""
    made = {role: Store(roles.as_role(role), Settings()) for role in ROLES}
    made["owner"].migrate()
    yield made
    for store in made.values():
        store.close()


def test_a_worker_without_tables_says_what_to_run_and_does_not_try_to_make_them(roles: Roles) -> None:
    store = Store(roles.as_role("worker"), Settings())

    with pytest.raises(SchemaMissingError, match="durable init"):
        store.runs.reported("x")


def test_the_workers_role_can_do_everything_that_a_run_needs(stores: dict[str, Store]) -> None:
    store = stores["worker"]
    worker = Worker(store)
    claim = worker.start("run")
    for relaxed in (False, True):
        store.runs.checkpoint(claim.key, claim.fence, step_write(f"step {relaxed}", 1), relaxed=relaxed)
    worker.retry(claim, delay=timedelta(0))
    worker.succeed(worker.claim("run"))
    store.results.store("plain", "SUCCESS", b"1", "json", None, None)
    store.results.save_group("group", b"[]", "json")
    other = worker.fail(worker.start())
    store.inspection.resume(
        [other], operation=uuid.uuid4(), actor="ada", reason=None, check=timedelta(seconds=30)
    )
    store.inspection.cancel([other], operation=uuid.uuid4(), actor="ada", reason=None)

    with keeper(store) as statements:
        assert statements.beat(worker.token, reserved=0) is False
        term = statements.lead(worker.token, timedelta(minutes=1)).term or 0
        assert statements.look(term).leading
        assert (
            statements.recover_orphans(term, limit=1, max_recoveries=1, result=b"", result_type="json") == []
        )
        assert (statements.wake(1), statements.publishable(1), statements.unclaimed(1)) == ([], [], [])
        assert statements.prune(timedelta(0), 10) == 2
        assert statements.retire(worker.token) == []
    assert store.results.expire(timedelta(0)) == {"results": 1, "groups": 1}


@pytest.mark.parametrize("sql", DDL)
def test_the_workers_role_cannot_change_the_schema(stores: dict[str, Store], sql: str) -> None:
    with (
        stores["worker"].connections.dedicated() as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(sql.encode())


def test_the_viewers_role_sees_everything(stores: dict[str, Store]) -> None:
    worker = Worker(stores["worker"])
    claim = worker.start("run")
    worker.step(claim, "download", 1)
    viewer = stores["viewer"]

    assert [run.id for run in viewer.inspection.list(Filter()).runs] == ["run"]
    assert viewer.results.get(["run"])[0]["state"] == "running"
    assert viewer.inspection.counts()


@pytest.mark.parametrize("sql", [*WRITES, *DDL])
def test_the_viewers_role_changes_nothing(stores: dict[str, Store], sql: str) -> None:
    Worker(stores["worker"]).start()

    with (
        stores["viewer"].connections.dedicated() as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(sql.encode())


def test_a_role_that_may_not_is_told_what_to_do(stores: dict[str, Store]) -> None:
    messages = MessageStore(stores["viewer"].connections, schema="durable")

    with pytest.raises(StoreError, match=r"permission denied for table \w+\. Grant it.*least-privilege"):
        messages.redrive("work")


def test_tables_of_an_older_installation_are_granted_once(roles: Roles, stores: dict[str, Store]) -> None:
    roles.run(roles.as_role("owner"), "create table durable.older (x integer)")
    roles.run(roles.as_role("owner"), roles.blocks[2])

    roles.run(roles.as_role("worker"), "insert into durable.older values (1)")


def test_a_viewer_of_columns_sees_no_payload(roles: Roles, stores: dict[str, Store]) -> None:
    roles.run(roles.as_role("owner"), roles.blocks[3])

    roles.run(roles.as_role("viewer"), "select id, state from durable.run")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles.run(roles.as_role("viewer"), "select result from durable.run")
    roles.run(roles.as_role("owner"), roles.blocks[2])


def test_the_viewers_role_is_enough_for_everything_that_the_flower_pages_read(
    roles: Roles, stores: dict[str, Store]
) -> None:
    async def read_everything() -> list[str]:
        watching = Watching(roles.as_role("viewer"), schema="durable", patience=60)
        try:
            for name, sql in watching.queries("watching").items():
                values = given("watching", name, sql)
                await watching.rows(name, **{one: values[one] for one in queries_parameters(sql)})
            questions = watching.queries("inspection")
            await watching.ask(list_runs(questions, Filter(text="x", since=timedelta(hours=1)), 10, None))
            await watching.ask(whole_run(questions, "run"))
            return list(watching.queries("watching"))
        finally:
            await watching.close()

    assert asyncio.run(read_everything())
