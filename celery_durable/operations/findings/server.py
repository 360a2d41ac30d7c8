"""The server: reachable, durable, on time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_durable.operations.findings.finding import Finding
from celery_durable.operations.wording import span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery_durable.config import Settings
    from celery_durable.store.health import Server

_SLOW = 0.02  # seconds per round trip: a step costs one
_CLOCK = 5.0  # seconds: visible in logs, and in an eta somebody computes
_FULL = 0.9  # share of max_connections


def about_server(server: Server, settings: Settings) -> Iterator[Finding]:
    """Return findings on the server and the way to it."""
    where = (
        f"{server.database} on {server.host} as {server.role}, {server.latency * 1000:.1f} ms per round trip"
    )
    if server.standby:
        yield Finding(
            "connection",
            "error",
            f"{where}; the server is a standby and takes no writes",
            "Point result_backend at the primary.",
        )
    elif server.latency > _SLOW:
        yield Finding(
            "connection",
            "warning",
            where,
            "Every step costs one round trip: bring workers and database closer together.",
        )
    else:
        yield Finding("connection", "ok", where)
    yield Finding(
        "postgres",
        "ok",
        f"Postgres {server.version.split()[1]}" if " " in server.version else f"Postgres {server.major}",
    )
    yield from _durability(server)
    yield from _clock(server)
    if server.pooled and settings.prepare_statements:
        yield Finding(
            "pooler",
            "warning",
            "A connection pooler sits between here and Postgres, and statements are prepared",
            "In transaction mode set durable_prepare_statements = False, "
            "or max_prepared_statements in PgBouncer 1.21 and newer.",
        )
    if server.connections > _FULL * server.max_connections:
        yield Finding(
            "connections",
            "warning",
            f"{server.connections} of {server.max_connections} connections are in use",
            "Lower durable_pool_size or --concurrency, put a pooler in front, or raise max_connections.",
        )


def _durability(server: Server) -> Iterator[Finding]:
    if not server.fsync:
        yield Finding(
            "durability",
            "error",
            "fsync is off: a crash of the server loses or corrupts everything",
            "Set fsync = on.",
        )
    elif not server.full_page_writes:
        yield Finding(
            "durability",
            "error",
            "full_page_writes is off: a crash can corrupt the data",
            "Set full_page_writes = on.",
        )
    elif server.synchronous_commit == "off":
        yield Finding(
            "durability",
            "warning",
            "synchronous_commit is off: a crash of the server forgets the last steps, which run again",
            'Set synchronous_commit = on; commit="async" relaxes it for single steps.',
        )
    else:
        yield Finding("durability", "ok", f"fsync on, synchronous_commit {server.synchronous_commit}")


def _clock(server: Server) -> Iterator[Finding]:
    ahead = server.clock_ahead
    if server.clock_offset:
        yield Finding(
            "clock",
            "warning",
            f"durable.clock_offset moves the database's clock by {server.clock_offset}",
            "That is for tests: alter database … reset durable.clock_offset.",
        )
    elif abs(ahead) > _CLOCK:
        way = "ahead of" if ahead > 0 else "behind"
        yield Finding(
            "clock",
            "warning",
            f"The database's clock is {span(abs(ahead))} {way} this machine's",
            "Timers go by the database alone, but an eta computed here is that far off: check NTP on both.",
        )
    else:
        yield Finding("clock", "ok", f"The clocks of database and machine differ by {span(abs(ahead))}")
