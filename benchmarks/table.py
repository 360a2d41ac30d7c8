"""Plain INSERTs, to compare with: of a small row, and of a row as wide as a checkpoint."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

CREATE = """
create table if not exists plain (
    id bigint generated always as identity primary key,
    run bigint not null,
    key text not null,
    output bytea
)"""
CREATE_WIDE = """
create table if not exists wide (
    run_key bigint not null, key text collate "C" not null, seq integer not null, outcome text not null,
    output bytea, codec text, digest bytea not null, arguments text not null, fence uuid not null,
    attempt integer not null, tries integer not null, spent integer not null, error text, clock timestamptz[],
    seconds double precision not null, stored_at timestamptz not null default now(),
    primary key (run_key, key)
)"""
INSERT = "insert into plain (run, key, output) values (%s, %s, %s)"
INSERT_WIDE = """
insert into wide (run_key, key, seq, outcome, output, codec, digest, arguments, fence, attempt,
                  tries, spent, error, clock, seconds)
values (%(run)s, %(key)s, %(seq)s, %(outcome)s, %(output)s, %(codec)s, %(digest)s, %(arguments)s, %(fence)s,
        1, %(tries)s, %(spent)s, %(error)s, %(clock)s, %(seconds)s)"""
OUTPUT = (
    b'{"~dataclass":["=benchmarks.app:Video",{"path":"https://example.org/x","seconds":12.5,"frames":3}]}'
)
WIDE: dict[str, Any] = {
    "outcome": "ok",
    "output": OUTPUT,
    "codec": "json",
    "digest": b"0123456789abcdef",
    "arguments": '{"number":3,"url":"https://example.org/video"}',
    "tries": 1,
    "spent": 0,
    "error": None,
    "clock": None,
    "seconds": 0.001,
}
_FENCE = uuid.UUID(int=1)


def create(connection: psycopg.Connection[Any]) -> None:
    """Create both tables."""
    connection.execute(CREATE.encode())
    connection.execute(CREATE_WIDE.encode())


def insert(connection: psycopg.Connection[Any], number: int) -> None:
    """Insert one small row."""
    connection.execute(INSERT, (1, f"fetch#{number}", OUTPUT))


def insert_wide(connection: psycopg.Connection[Any], number: int) -> None:
    """Insert one row with everything that a checkpoint stores."""
    values = {**WIDE, "run": 1, "fence": _FENCE, "key": f"fetch#{number}", "seq": number}
    connection.execute(INSERT_WIDE, values)
