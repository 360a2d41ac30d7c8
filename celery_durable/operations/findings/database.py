"""The database: its schema, what this role may do with it, and what bloats it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.operations.findings.finding import Finding, Level
from celery_durable.operations.wording import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.store.health import Health, Holder

_HELD_WARNING, _HELD_ERROR = 300.0, 3600.0  # seconds a transaction may keep dead rows alive
_HELD_TRANSACTIONS = 1_000_000
_DEAD_ROWS, _DEAD_SHARE = 50_000, 0.3


def about_schema(health: Health) -> Iterator[Finding]:
    """Return whether the schema is the one this release is written for."""
    name = f"Schema {health.schema!r}"
    if health.installed == 0:
        yield Finding(
            "schema", "error", f"{name} is not in this database", "Run: celery -A <app> durable init"
        )
    elif health.installed < health.newest:
        message = f"{name} is at version {health.installed}, this release brings {health.newest}"
        yield Finding("schema", "error", message, "Run: celery -A <app> durable init")
    elif health.installed > health.newest:
        message = f"{name} is at version {health.installed}, newer than this release ({health.newest})"
        yield Finding("schema", "error", message, "Upgrade here: pip install -U celery-durable")
    else:
        yield Finding("schema", "ok", f"{name} is at version {health.installed}")


def about_privileges(health: Health) -> Iterator[Finding]:
    """Return whether the role may do what workers do, and no more."""
    if not health.tables:
        return
    role = health.server.role
    needed = ("select", "insert", "update", "delete")
    tables = [table for table in health.tables if table.name != "migration"]
    missing = {right: [t.name for t in tables if not getattr(t, f"may_{right}")] for right in needed}
    lacking = {right: names for right, names in missing.items() if names}
    grant = f"grant select, insert, update, delete on all tables in schema {health.schema} to {role};"
    if set(lacking) == {"insert", "update", "delete"}:
        yield Finding(
            "privileges",
            "warning",
            f"Role {role} may only read: enough to look, not to work",
            f"For workers: {grant}",
        )
    elif lacking:
        detail = "; ".join(f"{right} on {', '.join(names)}" for right, names in lacking.items())
        yield Finding("privileges", "error", f"Role {role} lacks {detail}", grant)
    elif health.server.superuser:
        yield Finding(
            "privileges",
            "warning",
            f"Role {role} is a superuser",
            "Give workers a role of their own that may read and write the schema and cannot change it.",
        )
    else:
        yield Finding("privileges", "ok", f"Role {role} may read and write the schema")


def about_transactions(health: Health) -> Iterator[Finding]:
    """Return what keeps dead rows from being removed."""
    worst = [found for holder in health.held if (found := _holder(holder)) is not None]
    yield from worst
    if not worst:
        message = "No old transaction keeps dead rows alive"
        if not health.server.sees_sessions:
            message += " among those this role may see"
            advice = f"To see all: grant pg_read_all_stats to {health.server.role};"
            yield Finding("transactions", "ok", message, advice)
        else:
            yield Finding("transactions", "ok", message)


def _holder(holder: Holder) -> Finding | None:
    seconds, transactions = holder.seconds or 0.0, holder.transactions or 0
    if seconds < _HELD_WARNING and transactions < _HELD_TRANSACTIONS:
        return None
    level: Level = "error" if seconds >= _HELD_ERROR else "warning"
    who = f"{holder.kind} {holder.name}" + (f" of {holder.owner}" if holder.owner else "")
    what = (
        f"open for {span(seconds)}" if holder.seconds is not None else f"{transactions:,} transactions behind"
    )
    advice = {
        "session": f"Find out what it does; end it with: select pg_terminate_backend({holder.name});",
        "prepared transaction": f"commit prepared or rollback prepared '{holder.name}'.",
        "replication slot": f"Drop it if nobody reads it: select pg_drop_replication_slot('{holder.name}');",
    }[holder.kind]
    return Finding(
        "transactions",
        level,
        f"{who} ({holder.application or 'no name'}) is {what}: dead rows pile up",
        advice,
    )


def about_tables(health: Health) -> Iterator[Finding]:
    """Return tables that carry too many dead rows."""
    tables = health.tables
    bloated = [table for table in tables if table.dead > max(_DEAD_ROWS, _DEAD_SHARE * table.live)]
    for table in bloated:
        yield Finding(
            "vacuum",
            "warning",
            f"Table {table.name} has {table.dead:,} dead rows beside {table.live:,} live ones",
            f"Is autovacuum keeping up? Meanwhile: vacuum (analyze) {health.schema}.{table.name};",
        )
    if not health.server.autovacuum:
        message = "autovacuum is off: tables grow with every heartbeat and every run"
        yield Finding("vacuum", "warning", message, "Set autovacuum = on.")
    elif tables and not bloated:
        total = sum(table.bytes for table in tables) / 1_000_000
        yield Finding("vacuum", "ok", f"{total:,.1f} MB in {len(tables)} tables, few dead rows")
