"""What every statement's parameters look like in use, and the plan that the server makes for it."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from importlib import resources
from typing import TYPE_CHECKING, Any

from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer

from celery_durable.store import queries
from celery_durable.store.writes import NewRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.connections import Connection

MINUTE = timedelta(minutes=1)
MOMENT = datetime(2026, 1, 1, tzinfo=timezone.utc)
FENCE = uuid.uuid4()
UNKNOWN = 705  # the type of a string until the server knows better

# What a query's parameters look like in use. A new parameter belongs here, a new query is then covered.
PARAMETERS: dict[str, Any] = {
    "abreast": 3,
    "actor": "ada",
    "after": 10,
    "age": timedelta(days=7),
    "ago": MINUTE,
    "arguments": "(url='x')",
    "at": None,
    "attempt": 1,
    "awaits": "approved",
    "beats": [1, 2],
    "behind": None,
    "before": 20_000,
    "body": b"[]",
    "bucket": MINUTE,
    "calls": ['{"call": "1"}'],
    "carrier": "download",
    "chain": str(FENCE),
    "cause": "cancelled",
    "check": MINUTE,
    "chord": "group-7",
    "clock": [MOMENT],
    "cleaned": True,
    "cleans": True,
    "closed": FENCE,
    "code": "2026-05",
    "codec": "json",
    "compensates": False,
    "codecs": ["json"],
    "content_encoding": "utf-8",
    "content_type": "application/json",
    "countdown": None,
    "deadline": MINUTE,
    "deadline_at": None,
    "delay": MINUTE,
    "detached": False,
    "digest": b"d",
    "discard": "errors",
    "end": "run-2",
    "error": "ValueError: no",
    "eta": None,
    "every": 0.0,
    "expires": MINUTE,
    "expires_at": None,
    "failed_age": MINUTE,
    "fence": FENCE,
    "fences": [FENCE, FENCE],
    "floor": 10,
    "fork": 8,
    "fork_detail": "{}",
    "generations": [0, 1],
    "children": [0, 2],
    "at_once": 500,
    "grace": MINUTE,
    "group": None,
    "header": b"[]",
    "holder": 7,
    "hostname": "worker@one",
    "id": "run-7",
    "idle": "5000",
    "ids": ["run-7", "run-8"],
    "kept": ["download"],
    "key": "download",
    "keys": [7, 8],
    "kind": "signal",
    "late": b"{}",
    "late_codec": "application/json",
    "late_error": "SignalTimeout: no",
    "lease": MINUTE,
    "limit": 100,
    "longest": MINUTE,
    "lost": [True, False],
    "mark": "mark",
    "max_recoveries": 10,
    "message": b"{}",
    "meta": None,
    "most": 100,
    "name": "approved",
    "number": 7,
    "numbers": [1, 2],
    "once": "once",
    "operation": str(FENCE),
    "outcome": "ok",
    "output": b"1",
    "outputs": [b"1"],
    "parent": None,
    "payload": b"1",
    "period": MINUTE,
    "pid": 7,
    "position": 3,
    "prefix": "run-1",
    "priority": 3,
    "problem": "ValueError: x",
    "failed": None,
    "progress": "1",
    "publish": True,
    "queue": "celery",
    "rank": 0,
    "rate": 10,
    "ran_on": "worker@one",
    "reason": "retry",
    "replacements": 0,
    "reserved": 0,
    "result": b"1",
    "result_type": "application/json",
    "retries": 1,
    "revision": 0,
    "rollbacks": ["rollback:undo"],
    "root": None,
    "run": 7,
    "run_id": "run-7",
    "schema": "durable",
    "seconds": 0.5,
    "seq": 1,
    "signatures": [b"{}", b"{}"],
    "since": MOMENT,
    "size": 10,
    "slack": MINUTE,
    "slot": "customer-7",
    "slot_key": "customer-7",
    "slot_limit": 1,
    "slot_period": MINUTE,
    "slot_rank": 0,
    "slot_rate": 10,
    "source_detail": "{}",
    "spent": 0,
    "start": 1,
    "state": "succeeded",
    "states": ["failed"],
    "status": "SUCCESS",
    "tags": "{}",
    "task": "media.process",
    "task_id": "plain-7",
    "term": 1,
    "terminate": True,
    "terminated": False,
    "text": "%x%",
    "token": FENCE,
    "traceback": None,
    "tries": 1,
    "ttl": MINUTE,
    "undone": True,
    "unreported": False,
    "until": MOMENT,
    "version": None,
    "window": 100,
    "within": 0.0,
    "wait": FENCE,
    "words": "%x%",
    "worker": "worker@one",
}
BROKER: dict[str, Any] = {
    "auto_delete": True,
    "beats": [1, 2],
    "consumer": 7,
    "counted": [True, False],
    "exchange": "video",
    "floors": [0, 7],
    "ids": [1, 2],
    "kind": "topic",
    "listens": True,
    "lives": [MINUTE, None],
    "max_returns": 20,
    "names": ["celery", "video"],
    "numbers": [1, 1],
    "pattern": "^a$",
    "payload": b"{}",
    "payloads": [b"{}", b"{}"],
    "priorities": [9, 0],
    "queue": "celery",
    "queues": ["celery", "video"],
    "routing_key": "a.b",
    "runs": ["run-7", "run-8"],
    "sleepers": [7, 8],
    "ttl": MINUTE,
    "urgencies": [9, 0],
    "wanted": ["celery"],
}
OF_A_NOUN = {"messages": BROKER, "consumers": BROKER, "posting": BROKER}
IN_PARTICULAR: dict[tuple[str, str], dict[str, Any]] = {
    ("runs", "enqueue_bulk"): dict.fromkeys(vars(NewRun("", "", "", None, b"", b""))),
    ("runs", "enqueue_outbox"): {"id": ["a", "b"], "message": [b"{}", b"{}"], "body": [b"[]", b"[]"]},
    ("forks", "seed"): {"keys": ["download"]},
    ("inspection", "resume_discard"): {"before": ["failed", "failed"]},
    ("inspection", "resume"): {"states": ["failed"]},
    ("once", "take"): {"kind": "idempotency"},
    ("once", "hold"): {"kind": "idempotency"},
    ("once", "free"): {"kind": "idempotency"},
    ("once", "retake"): {"kind": "idempotency"},
    ("waits", "start"): {
        **dict.fromkeys(vars(NewRun("", "", "", None, b"", b""))),
        "parent": "run-7",
        "awaits": str(FENCE),
        "until": None,
    },
    ("waits", "collect"): {"awaits": str(FENCE)},
    ("keeper", "bury"): {"ids": [1, 2]},
    ("consumers", "rouse"): {"first": 1},
    ("posting", "put_away"): {"id": 7, "number": 1},
    ("runs", "update_state"): {"state": "PROGRESS"},
}
_TYPES = (
    "select format_type(oid, null) as name from unnest(%s::oid[]) with ordinality as t (oid, n) order by n"
)
NOUNS = sorted(
    entry.name.removesuffix(".sql")
    for entry in (resources.files("celery_durable.store") / "sql").iterdir()
    if entry.name.endswith(".sql")
)
EVERY_QUERY = [(noun, name) for noun in NOUNS for name in queries.load(noun)]


def given(noun: str, name: str, sql: str) -> dict[str, Any]:
    values = {**PARAMETERS, **OF_A_NOUN.get(noun, {}), **IN_PARTICULAR.get((noun, name), {})}
    missing = {match for match in queries_parameters(sql) if match not in values}
    assert not missing, (
        f"{noun}.{name} has the new parameters {missing}: add what they look like to PARAMETERS"
    )
    return values


def queries_parameters(sql: str) -> set[str]:
    return {part.partition(")s")[0] for part in sql.split("%(")[1:]}


def plan_of(connection: Connection, sql: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the nodes of the plan that the server keeps for a prepared statement."""
    prepared = PostgresQuery(Transformer(connection))
    prepared.convert(sql, {name: values[name] for name in queries_parameters(sql)})
    oids = [oid or UNKNOWN for oid in prepared.types]
    types = [row["name"] for row in connection.execute(_TYPES, [oids]).fetchall()]
    signature = f" ({', '.join(types)})" if types else ""
    connection.execute(b"prepare explained" + signature.encode() + b" as " + prepared.query)
    try:
        arguments = f" ({', '.join(['null'] * len(types))})" if types else ""
        row = connection.execute(f"explain (format json) execute explained{arguments}".encode()).fetchone()
    finally:
        connection.execute("deallocate explained")
    assert row is not None
    return list(nodes(row["QUERY PLAN"][0]["Plan"]))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)
