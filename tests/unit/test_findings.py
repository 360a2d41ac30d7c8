"""What measurements mean to the doctor."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from celery_durable.config import Settings
from celery_durable.operations.findings import Finding, judge
from celery_durable.store.health import Ailing, Health, Holder, Leader, Server, Table, WorkerRow

SERVER = Server(
    host="db:5432",
    latency=0.001,
    clock_ahead=0.01,
    pooled=False,
    database="media",
    role="worker",
    version="PostgreSQL 16.1 on x86_64",
    major=16,
    pid=1,
    standby=False,
    clock_offset=timedelta(0),
    fsync=True,
    full_page_writes=True,
    synchronous_commit="on",
    autovacuum=True,
    superuser=False,
    sees_sessions=True,
    max_connections=100,
    connections=10,
)
TABLE = Table(
    name="run",
    may_select=True,
    may_insert=True,
    may_update=True,
    may_delete=True,
    live=1000,
    dead=10,
    vacuumed_at=None,
    bytes=8192,
)
WORKER = WorkerRow(id=1, hostname="celery@a", pid=7, version="0.1", silent=3.0, runs=1)
MISSED = ("orphaned", "sleepless", "overdue", "unpublished", "unchecked", "outbox")
KINDS = (*MISSED, "exhausted", "taken back", "rollback")
NOTHING = tuple(Ailing(kind=kind, runs=0, seconds=None, ids=None) for kind in KINDS)
WELL = Health(
    server=SERVER,
    installed=1,
    newest=1,
    schema="durable",
    tables=(TABLE,),
    workers=(WORKER,),
    leader=Leader(hostname="celery@a", term=3, remaining=10.0),
    ailing=NOTHING,
)


def trouble(health: Health, **settings: Any) -> list[tuple[str, str]]:
    return [(f.check, f.level) for f in judge(health, Settings(**settings)) if f.level != "ok"]


def ailing(kind: str, seconds: float) -> tuple[Ailing, ...]:
    sick = Ailing(kind=kind, runs=4, seconds=seconds, ids=["a", "b", "c"])
    return tuple(sick if one.kind == kind else one for one in NOTHING)


def one(health: Health, check: str) -> Finding:
    [found] = [finding for finding in judge(health, Settings()) if finding.check == check]
    return found


def test_a_healthy_system_has_findings_and_all_are_ok() -> None:
    assert trouble(WELL) == []
    checks = {finding.check for finding in judge(WELL, Settings())}
    assert {"connection", "schema", "privileges", "workers", "leader", "runs", "vacuum", "clock"} <= checks


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"standby": True}, ("connection", "error")),
        ({"latency": 0.1}, ("connection", "warning")),
        ({"fsync": False}, ("durability", "error")),
        ({"full_page_writes": False}, ("durability", "error")),
        ({"synchronous_commit": "off"}, ("durability", "warning")),
        ({"clock_ahead": -7.0}, ("clock", "warning")),
        ({"clock_offset": timedelta(hours=1)}, ("clock", "warning")),
        ({"pooled": True}, ("pooler", "warning")),
        ({"connections": 95}, ("connections", "warning")),
        ({"superuser": True}, ("privileges", "warning")),
        ({"autovacuum": False}, ("vacuum", "warning")),
    ],
)
def test_each_trouble_of_the_server_is_found(change: dict[str, Any], expected: tuple[str, str]) -> None:
    assert trouble(replace(WELL, server=replace(SERVER, **change))) == [expected]


def test_a_pooler_is_no_trouble_without_prepared_statements() -> None:
    health = replace(WELL, server=replace(SERVER, pooled=True))
    assert trouble(health, prepare_statements=False) == []


@pytest.mark.parametrize("installed", [0, 1, 3])
def test_another_schema_version_is_an_error_that_names_the_command(installed: int) -> None:
    health = Health(server=SERVER, installed=installed, newest=2, schema="durable")

    assert trouble(health) == [("schema", "error")]
    advice = one(health, "schema").advice
    assert advice is not None
    assert ("pip install" if installed == 3 else "durable init") in advice


def test_a_role_that_may_only_look_is_told_what_workers_need() -> None:
    reader = replace(TABLE, may_insert=False, may_update=False, may_delete=False)

    assert trouble(replace(WELL, tables=(reader,))) == [("privileges", "warning")]


def test_a_role_that_may_do_half_is_an_error_that_names_what_is_missing() -> None:
    half = replace(WELL, tables=(replace(TABLE, may_update=False),))

    assert trouble(half) == [("privileges", "error")]
    assert "update on run" in one(half, "privileges").message


@pytest.mark.parametrize(
    ("holder", "level"),
    [
        (Holder(kind="session", name="7", owner="me", application=None, seconds=60, transactions=1), None),
        (
            Holder(kind="session", name="7", owner="me", application=None, seconds=600, transactions=1),
            "warning",
        ),
        (
            Holder(kind="session", name="7", owner="me", application="psql", seconds=7200, transactions=1),
            "error",
        ),
        (
            Holder(
                kind="replication slot",
                name="old",
                owner=None,
                application="inactive",
                seconds=None,
                transactions=2_000_000,
            ),
            "warning",
        ),
    ],
)
def test_what_holds_dead_rows_is_named_when_it_is_old(holder: Holder, level: str | None) -> None:
    found = one(replace(WELL, held=(holder,)), "transactions")

    assert found.level == (level or "ok")
    assert (holder.name in found.message) == (level is not None)


def test_dead_rows_are_too_many_in_number_and_in_share() -> None:
    assert trouble(replace(WELL, tables=(replace(TABLE, live=1_000_000, dead=200_000),))) == []
    assert trouble(replace(WELL, tables=(replace(TABLE, live=100, dead=40_000),))) == []
    assert trouble(replace(WELL, tables=(replace(TABLE, live=1000, dead=60_000),))) == [("vacuum", "warning")]


def test_a_keeper_alone_executes_nothing() -> None:
    keeper = replace(WORKER, hostname="keeper@a")
    assert trouble(replace(WELL, workers=(keeper,))) == [("workers", "warning")]


def test_a_silent_worker_is_named() -> None:
    frozen = replace(WELL, workers=(replace(WORKER, silent=31.0),))

    assert trouble(frozen) == [("workers", "warning")]
    assert "celery@a" in one(frozen, "workers").message


@pytest.mark.parametrize("leader", [None, Leader(hostname="celery@a", term=3, remaining=-1.0)])
def test_workers_without_a_leader_are_an_error(leader: Leader | None) -> None:
    assert trouble(replace(WELL, leader=leader)) == [("leader", "error")]


@pytest.mark.parametrize("kind", ["overdue", "unpublished", "unchecked", "outbox"])
def test_what_a_keeper_will_get_to_is_no_trouble_yet(kind: str) -> None:
    assert trouble(replace(WELL, ailing=ailing(kind, 2.0))) == []
    assert trouble(replace(WELL, ailing=ailing(kind, 120.0))) == [(kind, "error")]


def test_orphans_are_an_error_only_while_nobody_leads() -> None:
    orphans = replace(WELL, ailing=ailing("orphaned", 5.0))

    assert trouble(orphans) == [("orphaned", "warning")]
    assert trouble(replace(orphans, leader=None)) == [("leader", "error"), ("orphaned", "error")]


def test_runs_that_break_the_wake_rule_are_an_error_with_some_of_their_ids() -> None:
    stuck = replace(WELL, ailing=ailing("sleepless", 1.0))

    assert trouble(stuck) == [("sleepless", "error")]
    assert "4 runs" in one(stuck, "sleepless").message
    assert "(a, b, c, …)" in one(stuck, "sleepless").message


@pytest.mark.parametrize(
    ("kind", "resumable"), [("exhausted", True), ("rollback", True), ("taken back", False)]
)
def test_only_what_can_go_on_is_to_be_resumed(kind: str, resumable: bool) -> None:  # noqa: FBT001
    finding = one(replace(WELL, ailing=ailing(kind, 5.0)), kind)

    assert finding.level == "warning"
    assert "4 runs" in finding.message
    assert "(a, b, c, …)" in finding.message
    assert ("durable resume" in (finding.advice or "")) is resumable
