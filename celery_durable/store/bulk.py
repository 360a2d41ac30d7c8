"""New rows in few statements: one for each few hundred runs, however many there are to store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from celery_durable.store.writes import NewRun, PlainMessage

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from celery_durable.store.connections import Connection

New = TypeVar("New")

ROWS, BYTES = 500, 4 * 1024 * 1024
"""What one statement stores at most: this many rows, and bodies of about this size together."""


def batches(new: Iterable[New], bytes_of: Callable[[New], int]) -> Iterator[list[New]]:
    """Cut rows into what one statement stores."""
    batch: list[New] = []
    size = 0
    for one in new:
        more = bytes_of(one)
        if batch and (len(batch) == ROWS or size + more > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch


class Insertion:
    """Runs and plain messages on their way into the store, and what it answers.

    The statements are sent at once; inside a pipeline their answers are there when it ends.

    Arguments:
        connection: where to, in a pipeline or a transaction if there is more than one of them.
        sql: the queries of runs.
        new: what to store; of rows with the same id the first one.
        check: how long after a publish the keeper looks whether the message was lost.
        holder: key of the run that starts these, None when no run does.
        fence: its attempt; another one stores nothing.
    """

    def __init__(  # noqa: PLR0917
        self,
        connection: Connection,
        sql: Mapping[str, str],
        new: Sequence[NewRun | PlainMessage],
        check: timedelta,
        holder: int | None = None,
        fence: uuid.UUID | None = None,
    ) -> None:
        self._new = new
        shared = {"check": check, "holder": holder, "fence": fence}
        self._cursors = [
            connection.execute(sql[name], {**columns, **shared}) for name, columns in _statements(new)
        ]
        complete(connection, sql, new, shared)

    def states(self) -> list[str | None]:
        """Return for each row its state (of a plain message: its key), None where nothing was stored."""
        stored: dict[str, str] = {}
        for cursor in self._cursors:
            stored.update((row["id"], str(row.get("state") or row.get("key"))) for row in cursor)
        return [stored.get(one.id) for one in self._new]


def complete(
    connection: Connection,
    sql: Mapping[str, str],
    new: Iterable[NewRun | PlainMessage],
    shared: dict[str, Any],
) -> None:
    """Store what belongs to runs just stored: what they share with others, and their chains."""
    new = list(new)
    for one in new:
        if isinstance(one, NewRun) and one.slot is not None:
            connection.execute(sql["assign_slot"], slot_of(one))
    for links in _links(new):  # last: a pipeline that is left by an error commits what is in it already
        connection.execute(sql["enqueue_chain"], {**links, **shared})


def _statements(new: Iterable[NewRun | PlainMessage]) -> Iterator[tuple[str, dict[str, Any]]]:
    first: dict[str, NewRun | PlainMessage] = {}
    for one in new:
        first.setdefault(one.id, one)
    for runs in batches((one for one in first.values() if isinstance(one, NewRun)), size_of):
        yield ("enqueue", vars(runs[0])) if len(runs) == 1 else ("enqueue_bulk", columns_of(runs))
    for messages in batches((one for one in first.values() if isinstance(one, PlainMessage)), size_of):
        yield "enqueue_outbox", columns_of(messages)


def slot_of(run: NewRun) -> dict[str, Any]:
    """Return the parameters of `assign_slot`."""
    return {"id": run.id, **vars(run.slot)}


def size_of(row: NewRun | PlainMessage) -> int:
    """Return about how many bytes a row takes."""
    return len(row.body)


def _links(new: Iterable[NewRun | PlainMessage]) -> Iterator[dict[str, Any]]:
    """Yield the columns of links, those of each chain once."""
    chains = {chain.id: chain for one in new if isinstance(one, NewRun) for chain in one.chains}
    for chain in chains.values():
        described = {name: value for name, value in vars(chain).items() if name not in ("id", "links")}
        for numbered in batches(enumerate(chain.links, 1), lambda link: len(link[1])):
            numbers, signatures = zip(*numbered, strict=True)
            yield {"chain": chain.id, "numbers": list(numbers), "signatures": list(signatures), **described}


def columns_of(rows: Sequence[NewRun | PlainMessage]) -> dict[str, list[Any]]:
    """Return rows as the arrays that a bulk statement takes."""
    return {name: [getattr(row, name) for row in rows] for name in vars(rows[0])}
