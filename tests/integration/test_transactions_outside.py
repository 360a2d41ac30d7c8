"""Transactions where there is no run: called directly, and in tasks that are executed eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Iterator


@durable.transaction
def note(connection: Any, text: str) -> int:
    connection.execute("create table if not exists note (text text not null)")
    connection.execute("insert into note values (%s)", (text,))
    return int(connection.execute("select count(*) from note").fetchone()[0])


@pytest.fixture
def app(database_url: str) -> Iterator[Celery]:
    made = Celery(
        "notes", broker="memory://", backend=f"durable+{database_url}", task_cls=durable.DurableTask
    )
    made.conf.update(durable_auto_migrate=True, task_always_eager=True)
    backend: Any = made.backend
    backend.store.migrate()
    yield made
    backend.store.transactions().close()
    backend.store.close()
    made.close()


def test_a_direct_call_is_a_transaction_of_its_own(app: Celery) -> None:
    app.set_current()
    assert [note("a"), note("b")] == [1, 2]

    with pytest.raises(Exception, match="null value"):
        note(None)  # type: ignore[arg-type]
    assert note("c") == 3


def test_so_is_one_in_a_task_that_is_executed_eagerly(app: Celery) -> None:
    def twice() -> list[int]:
        return [note("a"), note("b")]

    other = Celery("other", set_as_current=False)
    other.set_current()  # the task's own app is meant
    assert app.task(twice, name="twice").delay().get() == [1, 2]
