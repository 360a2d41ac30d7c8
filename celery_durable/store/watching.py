"""Reading on an event loop: the questions of `questions.py` and `watching.sql` through a small async pool."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from celery_durable.exceptions import SchemaMissingError, StoreError, StoreUnavailableError
from celery_durable.store import queries
from celery_durable.store.connections import KEEPALIVE
from celery_durable.store.patience import first_line
from celery_durable.store.questions import Statement
from celery_durable.store.url import conninfo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from celery_durable.store.connections import Row
    from celery_durable.store.questions import Question

T = TypeVar("T")


class Watching:
    """Reads the store without ever holding up the event loop it is used on, nor waiting long for an answer.

    Arguments:
        url: the backend URL, with or without its `durable+`.
        schema: the schema's name.
        prepare: whether statements are prepared on the server; off behind PgBouncer in transaction mode.
        size: how many connections at most.
        patience: seconds after which a question counts as not answered; its statement is cancelled.

    Every method raises `StoreUnavailableError` when Postgres does not answer in time, `SchemaMissingError`
    when the schema is not there, and `StoreError` for anything else that Postgres refuses.
    """

    def __init__(
        self, url: str, *, schema: str, prepare: bool = True, size: int = 4, patience: float = 5.0
    ) -> None:
        self._url = url
        self.schema = schema
        self._prepare = prepare
        self._size = size
        self._patience = patience
        self._opening = asyncio.Lock()
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Row]] | None = None
        self._sql = {noun: queries.load(noun, schema) for noun in ("inspection", "watching", "health")}

    def queries(self, noun: str) -> dict[str, str]:
        """Return the named statements of a noun, to build a question from."""
        return self._sql[noun]

    async def ask(self, question: Question[T]) -> T:
        """Send the statements of a question, each round trip in one go, and return its answer."""
        answers: list[Sequence[Row]] | None = None
        while True:
            try:
                statements = question.send(answers)
            except StopIteration as end:
                answer: T = end.value
                return answer
            answers = await self._send(statements)

    async def rows(self, name: str, noun: str = "watching", **parameters: Any) -> Sequence[Row]:
        """Return the rows of one named statement."""
        (rows,) = await self._send([Statement(self._sql[noun][name], parameters)])
        return rows

    async def several(self, *wanted: tuple[str, dict[str, Any]]) -> list[Sequence[Row]]:
        """Return the rows of several statements of `watching.sql`, in one round trip."""
        return await self._send([Statement(self._sql["watching"][name], given) for name, given in wanted])

    async def _send(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        with_timeout = asyncio.wait_for(self._on_a_connection(statements), self._patience)
        try:
            return await with_timeout
        except PoolTimeout as exc:
            raise StoreUnavailableError(await self._why_no_connection()) from exc
        except (asyncio.TimeoutError, errors.QueryCanceled) as exc:
            message = f"Postgres did not answer within {self._patience:g} s"
            raise StoreUnavailableError(message) from exc
        except (errors.UndefinedTable, errors.InvalidSchemaName, errors.UndefinedColumn) as exc:
            message = (
                f"The schema {self.schema!r} is missing or older than this release. "
                f"Run: celery -A <app> durable init"
            )
            raise SchemaMissingError(message, schema=self.schema) from exc
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            message = f"Postgres is away: {first_line(exc)}"
            raise StoreUnavailableError(message) from exc
        except psycopg.Error as exc:
            message = f"Postgres refused: {first_line(exc)}"
            raise StoreError(message) from exc

    async def _on_a_connection(self, statements: Sequence[Statement]) -> list[Sequence[Row]]:
        async with self._connected() as connection:
            if len(statements) == 1:
                return [await (await connection.execute(*statements[0])).fetchall()]
            async with connection.pipeline():
                cursors = [await connection.execute(*statement) for statement in statements]
            return [await cursor.fetchall() for cursor in cursors]

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[psycopg.AsyncConnection[Row]]:
        pool = await self._opened()
        try:
            async with pool.connection() as connection:
                yield connection
        except (psycopg.OperationalError, psycopg.InterfaceError) as exc:
            if not isinstance(exc, (PoolTimeout, errors.QueryCanceled)):
                await pool.drain()  # the others are lost too
            raise

    async def _opened(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Row]]:
        async with self._opening:  # the first questions of a page are asked together
            if self._pool is None:
                await self._conninfo()  # what is wrong with the URL is said by whoever reads it
                pool = self._new_pool()
                await pool.open()
                self._pool = pool
            return self._pool

    def _new_pool(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Row]]:
        return AsyncConnectionPool(
            self._conninfo,
            connection_class=psycopg.AsyncConnection[Any],
            kwargs={
                **KEEPALIVE,
                "autocommit": True,
                "prepare_threshold": 0 if self._prepare else None,
                "row_factory": dict_row,
                "application_name": "celery-durable flower",
            },
            min_size=0,
            max_size=self._size,
            max_idle=60,
            timeout=min(3.0, self._patience),
            reconnect_timeout=3,
            num_workers=2,
            open=False,
            name="celery-durable-pages",
        )

    async def _why_no_connection(self) -> str:
        """Return what the pool keeps to itself: how one more try to connect ends."""
        try:
            connecting = psycopg.AsyncConnection.connect(await self._conninfo(), connect_timeout=2)
            connection = await asyncio.wait_for(connecting, 3)
        except psycopg.OperationalError as error:
            return f"Postgres is away: {first_line(error)}"
        except asyncio.TimeoutError:
            return "Postgres does not take connections"
        await connection.close()
        return f"All {self._size} connections of the pages were busy: --durable_connections allows more"

    async def _conninfo(self) -> str:
        # The embedded server may have to be started first.
        return await asyncio.get_running_loop().run_in_executor(None, partial(conninfo, self._url))

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close(timeout=1)
