"""A process that dies between its commit and the message it would have sent loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.world import World

# What a web process does: one transaction with an order and its run. It dies by SIGKILL where it is told to.
PROGRAM = """
import os, signal, sys
from harness.app import app
from celery_durable import envelope
from celery_durable.store.callers.statements import CallersStore
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

where, url = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "before the commit":
    Session.commit = die
elif where == "after the commit":
    CallersStore.committed = die
elif where == "before the message":
    envelope.publish_stored = die
elif where == "after the message":
    CallersStore.published = die
with Session(create_engine(url)) as session:
    session.execute(text("insert into orders values (7)"))
    app.tasks["flow"].apply_async((["charge"],), task_id="order-7", transaction=session)
    session.commit()
"""
DEATHS = ["after the commit", "before the message", "after the message"]


@pytest.fixture
def world(new_world: Callable[..., Any]) -> Iterator[World]:
    """Return a world in which a lost message is not missed before the test is over."""
    with new_world(durable_check_interval=120.0) as made:
        yield made


def order(world: World, where: str) -> None:
    world.tables.rows("create table orders (id integer primary key)")
    url = world.tables.url.replace("postgresql", "postgresql+psycopg")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, where, url],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **world.setup.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("where", DEATHS)
def test_killed_after_its_commit_the_run_is_sent_by_the_keeper_and_done_once(
    world: World, where: str
) -> None:
    order(world, where)
    assert world.tables.one("select count(*) from orders") == 1
    assert world.tables.state("order-7") == "pending"

    world.worker()

    world.tables.wait_for_state("order-7", "succeeded", timeout=15)
    assert world.ledger.names(run="order-7") == ["charge"]


def test_killed_before_its_commit_there_is_no_run_and_no_message(world: World) -> None:
    world.worker()

    order(world, "before the commit")

    assert world.tables.one("select count(*) from orders") == 0
    assert world.tables.state("order-7") is None
    marker = world.send("flow", ["marker"])
    world.tables.wait_for_state(marker.id, "succeeded")
    assert world.ledger.names() == ["marker"]
