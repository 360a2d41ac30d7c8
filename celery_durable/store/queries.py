"""The SQL of the store: one `.sql` file per noun, each query named with a line of intent."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_LEFT_ALONE = re.compile(r"(--[^\n]*|'[^']*')")
_OPTIONAL_LINE = re.compile(r"^.*--\? (\w+)\n", re.MULTILINE)
_SCHEMA = re.compile(r"\bdurable\.(?=[a-z_]+)")


def quote_identifier(name: str) -> str:
    """Return `name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """Return `sql`, which is written for the schema `durable`, for another schema.

    The settings `durable.clock_offset` and the like are names of the server, not of the schema.
    """
    if schema == "durable":
        return sql
    quoted = quote_identifier(schema)
    parts = _LEFT_ALONE.split(sql)  # every second part is a comment or a string
    return "".join(
        part if number % 2 else _SCHEMA.sub(lambda _: f"{quoted}.", part) for number, part in enumerate(parts)
    )


def with_lines(sql: str, wanted: Iterable[str]) -> str:
    """Return `sql` without the lines that end in `--? name`, but for those whose name is wanted."""
    kept = frozenset(wanted)
    return _OPTIONAL_LINE.sub(lambda line: line[0] if line[1] in kept else "", sql)


@cache
def load(noun: str, schema: str = "durable") -> dict[str, str]:
    """Return the queries of `sql/<noun>.sql` by name."""
    text = (resources.files("celery_durable.store") / "sql" / f"{noun}.sql").read_text("utf-8")
    names = _NAME.split(text)[1:]
    return {name: in_schema(body.strip(), schema) for name, body in zip(names[::2], names[1::2], strict=True)}
