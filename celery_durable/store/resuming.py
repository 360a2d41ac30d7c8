"""What a new generation of a run begins with: errors are put aside, and waits for children taken up again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celery_durable.store.connections import Connection, Row


def put_aside(
    connection: Connection, sql: dict[str, Any], resumed: Sequence[Row], audit: dict[str, Any]
) -> None:
    """Put aside what runs that begin a new generation are to do again; note that they were resumed.

    Arguments:
        connection: in the transaction that has opened the generation.
        sql: the statements of inspection.
        resumed: key, state before, generation and number of children of each run.
        audit: operation, actor and reason.
    """
    if resumed:
        columns = {
            "keys": [row["key"] for row in resumed],
            "before": [row["before"] for row in resumed],
            "generations": [row["generation"] for row in resumed],
            "children": [row["children"] for row in resumed],
        }
        connection.execute(sql["resume_discard"], columns | audit)


def children_to_resume(connection: Connection, sql: dict[str, Any], ids: Sequence[str]) -> dict[str, int]:
    """Return how many failed and cancelled children each of these runs would start again."""
    rows = connection.execute(sql["children_to_resume"], {"ids": list(ids)}).fetchall()
    return {row["id"]: row["children"] for row in rows}
