"""`delay_on_commit` of durable tasks, and the URL of a project's own database."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import django
import pytest
from celery import Celery
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from harness.postgres import fresh_database
from harness.tables import Tables

import celery_durable as durable
from celery_durable.django import DjangoDurableTask
from celery_durable.store.url import conninfo, django_alias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store import Store

PARTS = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")


def database(url: str) -> dict[str, str]:
    """Return a URL as an entry of Django's DATABASES."""
    parts = urlsplit(url)
    values = (parts.path.strip("/"), parts.username, parts.password, parts.hostname, parts.port)
    return dict(zip(PARTS, ("django.db.backends.postgresql", *(str(v or "") for v in values)), strict=True))


class Project:
    """An app whose store is in the default database of a Django project with three databases."""

    def __init__(self, url: str) -> None:
        self.app = Celery(
            "project",
            broker=f"durable+{url}",
            backend="durable+django://default",
            task_cls=DjangoDurableTask,
            set_as_current=False,
        )

        @self.app.task(name="project.fulfil", shared=False)
        def fulfil(order: int) -> int:
            return order

        self.fulfil: Any = fulfil
        self.store.migrate()

    @property
    def store(self) -> Store:
        backend: Any = self.app.backend
        store: Store = backend.store
        return store

    def sent(self) -> list[str]:
        """Take what the broker has; return the ids of the tasks."""
        found = []
        with self.app.connection_for_read() as connection, connection.channel() as channel:
            while (message := channel.basic_get("celery", no_ack=True)) is not None:
                found.append(message.headers["id"])
        return found


@pytest.fixture(scope="module")
def project(postgres_url: str) -> Iterator[Project]:
    with fresh_database(postgres_url) as url, fresh_database(postgres_url) as other:
        databases = {
            DEFAULT_DB_ALIAS: database(url),
            "archive": database(other),
            "local": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        }
        settings.configure(DATABASES=databases, USE_TZ=True)
        django.setup()
        made = Project(url)
        yield made
        made.store.close()
        connections.close_all()


@pytest.fixture
def tables(project: Project) -> Iterator[Tables]:
    """Return a look at the runs, of which there are none."""
    made = Tables(conninfo("django://default"))
    made.rows("delete from durable.run")
    project.sent()
    yield made
    made.close()


def undone(project: Project, order: int, using: str = DEFAULT_DB_ALIAS) -> None:
    """Start a run in a transaction, or a savepoint, that is rolled back."""
    with suppress(LookupError), transaction.atomic(using=using):
        project.fulfil.apply_async_on_commit((order,), using=using)
        raise LookupError


def ids(tables: Tables) -> list[str]:
    return [row["id"] for row in tables.rows("select id from durable.run order by key")]


def test_the_run_is_stored_with_the_transaction_and_sent_after_it(project: Project, tables: Tables) -> None:
    with transaction.atomic():
        result = project.fulfil.delay_on_commit(1)
        assert (ids(tables), project.sent()) == ([], [])
        with connections["default"].cursor() as cursor:
            cursor.execute("select count(*) from durable.run")
            assert cursor.fetchone() == (1,)

    assert ids(tables) == [result.id] == project.sent()


def test_what_is_rolled_back_is_neither_stored_nor_sent(project: Project, tables: Tables) -> None:
    undone(project, 1)

    with transaction.atomic():
        before = project.fulfil.delay_on_commit(2)
        undone(project, 3)
        with transaction.atomic():
            after = project.fulfil.apply_async_on_commit((4,), countdown=None)

    assert ids(tables) == [before.id, after.id] == project.sent()


def test_an_error_in_the_sending_is_not_the_callers(
    project: Project, tables: Tables, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(type(project.store.callers), "committed", broken)
    with transaction.atomic():
        result = project.fulfil.delay_on_commit(1)

    assert ids(tables) == [result.id]
    assert "the keeper sends them" in caplog.text


def test_outside_of_a_transaction_the_run_starts_at_once(project: Project, tables: Tables) -> None:
    result = project.fulfil.delay_on_commit(1)

    assert ids(tables) == [result.id] == project.sent()
    with pytest.raises(durable.TransactionUsageError, match="outside of any transaction"):
        project.fulfil.apply_async((1,), transaction=connections["default"])


@pytest.mark.parametrize("alias", ["archive", "local"])
def test_a_transaction_of_another_database_sends_after_its_commit_as_celery_does(
    project: Project, tables: Tables, alias: str
) -> None:
    undone(project, 1, using=alias)
    with transaction.atomic(using=alias):
        result = project.fulfil.apply_async_on_commit((1,), using=alias)
        assert ids(tables) == []

    assert ids(tables) == [result.id] == project.sent()


def test_asked_for_by_name_another_database_is_refused(project: Project, tables: Tables) -> None:
    with (
        transaction.atomic(using="archive"),
        pytest.raises(durable.TransactionUsageError, match="of another database"),
    ):
        project.fulfil.apply_async((1,), transaction=connections["archive"])
    with (
        transaction.atomic(using="local"),
        pytest.raises(durable.TransactionUsageError, match="'local' is sqlite"),
    ):
        project.fulfil.apply_async((1,), transaction=connections["local"])


def test_djangos_own_connection_is_a_transaction_to_name(project: Project, tables: Tables) -> None:
    from django.db import connection

    with transaction.atomic():
        result = project.fulfil.apply_async((1,), transaction=connection)

    assert ids(tables) == [result.id] == project.sent()


def test_an_eager_task_is_called_with_the_commit(project: Project, tables: Tables) -> None:
    project.app.conf.task_always_eager = True
    try:
        with transaction.atomic():
            result = project.fulfil.delay_on_commit(1)
            assert result.id
    finally:
        project.app.conf.task_always_eager = False

    assert ids(tables) == []


def test_the_url_names_a_database_as_it_is_now(project: Project) -> None:
    assert django_alias("durable+django://") == "default"
    assert django_alias("durable+postgresql://db/django") is None
    entry = connections["default"].settings_dict
    name = entry["NAME"]
    try:
        entry["NAME"] = "test_shop"
        assert "dbname=test_shop" in conninfo("durable+django://default")
    finally:
        entry["NAME"] = name


@pytest.mark.parametrize(
    ("alias", "problem"), [("orders", "has no 'orders', it has 'default', 'archive'"), ("local", "is sqlite")]
)
def test_an_alias_that_cannot_be_the_store_is_refused(project: Project, alias: str, problem: str) -> None:
    with pytest.raises(durable.ConfigurationError, match=problem):
        conninfo(f"durable+django://{alias}")
