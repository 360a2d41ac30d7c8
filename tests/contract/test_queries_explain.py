"""Every statement is understood by the migrated schema, and reads no large table from end to end."""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from explaining import EVERY_QUERY, given, plan_of
from harness.wire import on_the_wire
from psycopg.rows import dict_row

from celery_durable.config import Settings
from celery_durable.store import Store, queries
from celery_durable.store.queries import with_lines
from celery_durable.store.slots import slotted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.connections import Connection

# These look at everything, on purpose, when a person asks.
LOOKS_AT_EVERYTHING = {
    ("chords", "expire"),
    ("inspection", "counts"),
    ("keeper", "prunable"),
    ("health", "ailing"),
    ("watching", "storage"),  # the catalogue
    ("health", "server"),
    ("health", "held"),
    ("health", "tables"),
    ("messages", "queues"),
}
OF_A_WORKER = {"chains", "once", "posting", "runs", "signals", "slots", "transactions", "waits"}
OF_A_CONSUMER = {"claim", "expire", "give_back", "leave", "ready", "reconcile", "recover", "settle"}
RARE = {("runs", "withdraw"), ("waits", "forget")}  # no message could be sent; a parent was resumed
FILTERS = ["states", "task", "reason", "has_error", "has_no_error", "worker", "since", "until", "keys", "ids"]
# No index serves these: they look at the runs of a window of keys.
IN_A_WINDOW = ["version", "tags", "ran_on", "text", "words"]
# Small by nature: one row per worker process, one leader, messages on their way, the server's own catalogue.
SMALL_TABLES = {"worker", "leader", "outbox", "migration", "pg_database", "pg_namespace", "pg_class"}
SMALL_TABLES |= {"queue", "binding", "consumer", "claim", "message_id_seq"}  # of the broker

FILL = """
insert into durable.worker (token, hostname, pid, version)
    select gen_random_uuid(), 'worker@' || n, n, '0' from generate_series(1, 20) n;
insert into durable.leader (holder, term, expires_at) values (1, 1, now() + interval '1 hour');
insert into durable.run
    (id, task, queue, priority, state, reason, due, published_at, fence, attempt, worker, pid,
     message, body, root, created_at, claimed_at, finished_at)
    select 'run-' || n, 'task-' || n % 20, 'celery', n % 4, state,
           case when state = 'waiting' then 'retry' end,
           case when state in ('pending', 'waiting') then now() + (n % 1000 - 100) * interval '1 minute' end,
           case when n % 3 <> 0 then now() - n * interval '1 second' end,
           gen_random_uuid(), 1, case when state = 'running' then n % 20 + 1 end, n,
           '{}', repeat('x', 200)::bytea, 'run-' || n - n % 5, now() - (30000 - n) * interval '1 minute',
           now() - n * interval '1 minute',
           case when state in ('succeeded', 'failed') then now() - n * interval '1 minute' end
    from (select n, (case n % 25 when 0 then 'running' when 1 then 'pending' when 2 then 'waiting'
                                 when 3 then 'failed' else 'succeeded' end)::durable.run_state as state
          from generate_series(1, 25000) n) as runs;
update durable.run set wait = md5((key / 50)::text)::uuid where key % 3 = 0;
update durable.run set reason = 'children', awaits = md5(key::text)::uuid
    where state = 'waiting' and key % 4 = 0;
insert into durable.checkpoint
    (run_key, key, seq, outcome, output, digest, arguments, fence, attempt, tries, seconds)
    select key, 'step#' || n, n, 'ok', '1', 'd', '()', fence, 1, 1, 0.1
    from durable.run, generate_series(1, 3) n;
insert into durable.attempt (run_key, number, fence, worker, hostname, pid)
    select key, 1, fence, 1, 'worker@1', 1 from durable.run;
insert into durable.event (run_key, kind) select key, 'recovered' from durable.run where key % 5 = 0;
insert into durable.signal (run_key, name, payload, codec, idempotency_key, taken_by)
    select key, 'approved', '1', 'json', n, case when n > 1 then 'wait_for_signal:approved' end
    from durable.run, generate_series(1, 2) n where key % 3 = 0;
insert into durable.chain (id, root, content_type, content_encoding)
    select gen_random_uuid(), id, 'application/json', 'utf-8' from durable.run where key % 5 = 0;
insert into durable.chain_link (chain, number, signature)
    select id, n, '{}' from durable.chain, generate_series(1, 5) n;
insert into durable.once (task, kind, key, run)
    select 'task-' || n % 20, 'idempotency', 'key-' || n, 'run-' || n from generate_series(1, 20000) n;
insert into durable.result (task_id, status, date_done)
    select 'plain-' || n, 'SUCCESS', now() - n * interval '1 minute' from generate_series(1, 20000) n;
insert into durable.queue (name) select 'queue-' || n from generate_series(1, 10) n;
insert into durable.binding (exchange, kind, routing_key, queue)
    select 'exchange-' || n % 3, 'direct', n, 'queue-' || n from generate_series(1, 10) n;
insert into durable.consumer (hostname, pid, queues)
    select 'host', n, array['queue-' || n % 10] from generate_series(1, 20) n;
insert into durable.message (queue, priority, payload, expires_at)
    select 'queue-' || n % 10, n % 3, repeat('x', 800)::bytea,
           case when n % 20 = 1 then now() - (n % 9 - 4) * interval '1 hour' end
    from generate_series(1, 20000) n;
insert into durable.claim (message, consumer, number)
    select id, id % 25, 1 from durable.message where id % 50 = 0;
insert into durable.transaction_step (run_id, step_key, attempt, fence)
    select 'run-' || n, 'step', 1, gen_random_uuid() from generate_series(1, 20000) n;
insert into durable.result_group (id, result, result_type, date_done)
    select 'group-' || n, '[]', 'json', now() - n * interval '1 minute' from generate_series(1, 5000) n;
insert into durable.chord (id, size, counted, created_at, check_at, done_at)
    select 'group-' || n, 9, 5, now() - n * interval '1 minute', now() + (n % 100 - 1) * interval '1 minute',
           case when n % 10 <> 0 then now() end
    from generate_series(1, 5000) n;
insert into durable.chord_part (chord, task_id, position, state, result, counted)
    select 'group-' || n, 'part-' || part, part, 'SUCCESS', '1', part < 5
    from generate_series(1, 5000) n, generate_series(0, 7) part;
"""
# The tables of which autovacuum thinks that enough has changed for it to look at them.
CHANGED = """
    select c.relname as name
    from pg_class c left join lateral (
        select option_value::integer as value from pg_options_to_table(c.reloptions)
        where option_name = 'autovacuum_analyze_threshold') as own on true,
    lateral query_to_xml('select count(*) from durable.' || c.relname, true, true, '') as rows
    where c.relnamespace = 'durable'::regnamespace and c.relkind = 'r'
      and (xpath('/row/count/text()', rows))[1]::text::integer >= coalesce(own.value, 50)
"""
_TYPES = (
    "select format_type(oid, null) as name from unnest(%s::oid[]) with ordinality as t (oid, n) order by n"
)


@pytest.fixture(scope="module")
def filled(postgres_url: str) -> Iterator[Connection]:
    """Return a connection to a database with many runs in every state, analyzed."""
    with database(postgres_url) as connection:
        connection.execute(FILL.encode())
        connection.execute("vacuum analyze")
        yield connection


@pytest.fixture(scope="module", params=[60, 2000])
def begun(postgres_url: str, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Return a connection to a database in which there is not much yet, and autovacuum has come by."""
    with database(postgres_url) as connection:
        few = re.sub(r"generate_series\(1, \d+000\)", f"generate_series(1, {request.param})", FILL)
        connection.execute(few.encode())
        for table in connection.execute(CHANGED).fetchall():
            connection.execute(f"vacuum analyze durable.{table['name']}".encode())
        yield connection


@pytest.fixture(scope="module")
def nearly_empty(postgres_url: str) -> Iterator[Connection]:
    """Return a consumer's connection to a database with a handful of everything, analyzed."""
    with database(postgres_url) as connection:
        connection.execute(re.sub(r"generate_series\(1, \d+000\)", "generate_series(1, 1)", FILL).encode())
        connection.execute("vacuum analyze")
        connection.execute(queries.load("consumers")["plan_by_index"])
        yield connection


@contextmanager
def database(postgres_url: str) -> Iterator[Connection]:
    name = f"durable_test_{uuid.uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        made = Store(url, Settings())
        made.migrate()
        made.transactions(url).install()  # as if it were a user's database on another server
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("set plan_cache_mode = force_generic_plan")
            yield connection
        server.execute(f"drop database {name} with (force)".encode())


def scanned(plan: list[dict[str, Any]]) -> list[str]:
    """Return the large tables of ours that a plan reads from end to end."""
    return [
        node["Relation Name"]
        for node in plan
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] not in SMALL_TABLES
    ]


@pytest.mark.parametrize(("noun", "name"), EVERY_QUERY)
def test_a_query_is_understood_and_reads_by_index(filled: Connection, noun: str, name: str) -> None:
    sql = with_lines(queries.load(noun)[name], ["states"])

    plan = plan_of(filled, sql, given(noun, name, sql))

    if (noun, name) not in LOOKS_AT_EVERYTHING:
        assert scanned(plan) == []


@pytest.mark.parametrize(
    ("noun", "name"),
    [query for query in EVERY_QUERY if query[0] in OF_A_WORKER and query not in RARE],
)
def test_a_plan_that_a_worker_has_made_in_the_beginning_will_do_later(
    begun: Connection, noun: str, name: str
) -> None:
    """It keeps its plans; a table that it reads from end to end may be large a minute later."""
    sql = queries.load(noun)[name]

    plan = plan_of(begun, sql, given(noun, name, sql))

    assert scanned(plan) == []


@pytest.mark.parametrize("name", sorted(OF_A_CONSUMER))
def test_a_consumer_s_plan_that_was_made_for_a_handful_of_messages_reads_by_index(
    nearly_empty: Connection, name: str
) -> None:
    sql = queries.load("consumers")[name]

    plan = plan_of(nearly_empty, sql, given("consumers", name, sql))

    reading = [
        node for node in plan if node.get("Relation Name") == "message" and "Scan" in node["Node Type"]
    ]
    assert reading
    assert [node for node in reading if "Index Cond" not in node] == []


def test_a_claim_that_needs_a_slot_reads_by_index(filled: Connection) -> None:
    plain = queries.load("runs")["claim"]
    sql = slotted(plain)

    assert sql != plain
    assert scanned(plan_of(filled, sql, given("runs", "claim", sql))) == []


@pytest.mark.parametrize("wanted", FILTERS)
def test_a_filtered_list_reads_by_index(filled: Connection, wanted: str) -> None:
    sql = with_lines(queries.load("inspection")["list"], {"states", wanted})

    assert scanned(plan_of(filled, sql, given("inspection", "list", sql))) == []


@pytest.mark.parametrize("wanted", IN_A_WINDOW)
def test_a_filter_without_an_index_reads_a_window_by_index(filled: Connection, wanted: str) -> None:
    sql = with_lines(queries.load("inspection")["list"], {"floor", wanted})

    assert scanned(plan_of(filled, sql, given("inspection", "list", sql))) == []


@pytest.mark.parametrize(
    "index", ["run_waiting", "run_pending", "run_unpublished", "run_owner", "run_finished"]
)
def test_a_missing_index_is_noticed(filled: Connection, index: str) -> None:
    """The test above can fail: without an index, a query of the keeper reads everything or sorts it."""
    query = {
        "run_waiting": "wake",
        "run_pending": "unclaimed",
        "run_unpublished": "publishable",
        "run_owner": "claims_of_queue",
        "run_finished": "prune",
    }[index]
    sql = queries.load("keeper")[query]

    def indexes() -> set[str]:
        return {node.get("Index Name", "") for node in plan_of(filled, sql, given("keeper", query, sql))}

    assert index in indexes()
    with filled.transaction(force_rollback=True):
        filled.execute(f"drop index durable.{index}".encode())
        assert index not in indexes()


def test_a_statement_on_the_wire_is_the_one_in_the_file() -> None:
    assert "%(" not in on_the_wire("runs", "claim")
