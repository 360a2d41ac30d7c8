"""Transaction steps: a body's writes and the record that it is done commit together, or not at all."""

from __future__ import annotations

import random
import threading
import time
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from celery_durable.exceptions import LeaseLostError, StepUsageError
from celery_durable.store import queries
from celery_durable.store.forms import Kept
from celery_durable.store.lending import LentConnections, PsycopgLender
from celery_durable.store.patience import PASSING, persist
from celery_durable.store.url import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.checkpoint import StepWrite
    from celery_durable.store.forms import Handle, Place, TransactionForm
    from celery_durable.store.lending import Lender, LentConnection

T = TypeVar("T")

_CONFLICTS = frozenset({"40001", "40P01"})  # serialisation failure, deadlock
_REFUSED = "DU001"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0


class _ConflictError(Exception):
    """Another transaction was in the way: this one has to be done again."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class _RaisedError(Exception):
    """The body raised; carried past everything that would take its error for the store's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


class TransactionStore:
    """Transactions of steps in the store's own database.

    Arguments:
        url: the database.
        schema: the durable schema's name.
        size: how many transactions one process has open at most, with each kind of handle.
        prepare: whether statements are prepared on the server.
        outage_budget: seconds that a transaction is tried again while Postgres is away, or in conflict.
    """

    noun = "transactions"

    def __init__(self, url: str, *, schema: str, size: int, prepare: bool, outage_budget: float) -> None:
        self._url = url
        self._schema = schema
        self._budget = outage_budget
        self._prepare = prepare
        self._sql = queries.load(self.noun, schema)
        self._connections = LentConnections(
            url, size=size, prepare=prepare, outage_budget=outage_budget, on_open=self._check
        )
        self._lenders: dict[Handle, Lender] = {"psycopg": PsycopgLender(self._connections)}

    def perform(
        self,
        place: Place,
        form: TransactionForm,
        body: Callable[[Any], StepWrite],
        may_go_on: Callable[[], None],
    ) -> Kept:
        """Run a body that gets a handle and returns what is to be stored; commit both.

        The body is run again after a conflict with another transaction, and after its connection was lost:
        nothing of it is there then. What the body raises is raised, with nothing of it committed.

        Arguments:
            place: whose step it is.
            form: how the transaction is made.
            body: takes the handle.
            may_go_on: called between the tries; raises to end them.

        Raises `LeaseLostError` when another attempt owns the run, `StepUsageError` for a body that ended the
        transaction itself.
        """
        lender = self._lender(form.handle)

        def work(connection: LentConnection, handle: Any) -> Kept:
            known = self._begin(connection, place, form)
            if known is not None:
                connection.execute("rollback")
                return known
            entry = _lent(connection, lender, handle, body)
            return Kept(entry.output, entry.codec, stop=self._commit(connection, place, entry))

        return self._tried(lender, work, may_go_on)

    def plainly(self, form: TransactionForm, body: Callable[[Any], T]) -> T:
        """Run a body outside of any run: in a transaction that is committed when it returns."""
        lender = self._lender(form.handle)

        def work(connection: LentConnection, handle: Any) -> T:
            connection.execute(f"begin isolation level {form.isolation}".encode())
            value = _lent(connection, lender, handle, body)
            with _verdicts(connection):
                connection.execute("commit")
            return value

        return self._tried(lender, work, lambda: None)

    def install(self) -> None:
        """Nothing: the schema's migrations have made what is needed here."""

    def close(self) -> None:
        """Close the connections of this process."""
        for lender in self._lenders.values():
            lender.drain()
        self._connections.close()

    # -- tries --------------------------------------------------------------------------------------------

    def _tried(
        self, lender: Lender, work: Callable[[LentConnection, Any], T], may_go_on: Callable[[], None]
    ) -> T:
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                return self._patiently(lender, work, may_go_on)
            except _RaisedError as raised:
                raise raised.error from raised.error.__cause__
            except _ConflictError as conflict:
                if time.monotonic() - began > self._budget:
                    raise conflict.error from conflict.error.__cause__
            may_go_on()
            threading.Event().wait(pause * random.uniform(0.5, 1.0))  # noqa: S311  (spreads load)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _patiently(
        self, lender: Lender, work: Callable[[LentConnection, Any], T], may_go_on: Callable[[], None]
    ) -> T:
        def again() -> T:
            may_go_on()
            return lender.once(work)

        began = time.monotonic()
        try:
            return lender.once(work)
        except PASSING as error:
            return persist(again, error, repr(redact(self._url)), began, self._budget, None, lender.drain)

    def _lender(self, handle: Handle) -> Lender:
        if handle not in self._lenders:
            from celery_durable.store.lending_sqlalchemy import SqlAlchemyLender

            self._lenders[handle] = SqlAlchemyLender(self._connections, session=handle == "session")
        return self._lenders[handle]

    # -- one transaction ------------------------------------------------------------------------------------

    def _check(self, connection: Any) -> None:
        """Nothing: the run was claimed in this database."""

    def _begin(self, connection: LentConnection, place: Place, form: TransactionForm) -> Kept | None:
        """Begin, in one round trip with the look at what is stored; return that, if it is."""
        with connection.pipeline():
            connection.execute(f"begin isolation level {form.isolation}".encode())
            looked = connection.execute(
                self._sql["look"],
                {**self._names(place), "idle": _milliseconds(form.limit)},
                prepare=self._prepare,
            )
        row: Any = looked.fetchone()
        if row is None:
            connection.execute("rollback")
            raise LeaseLostError(step=place.key)
        _, _, outcome, output, codec = row
        return None if outcome is None else Kept(output, codec, before=True)

    def _commit(self, connection: LentConnection, place: Place, entry: StepWrite) -> bool:
        """Store the record and commit, in one round trip; return whether the run is asked to stop."""
        with _verdicts(connection):
            with connection.pipeline():
                kept = connection.execute(
                    self._sql["keep"], {**entry.__dict__, **self._names(place)}, prepare=self._prepare
                )
                connection.execute("commit")
            row: Any = kept.fetchone()
        return bool(row and row[0])

    @staticmethod
    def _names(place: Place) -> dict[str, Any]:
        return {**place.__dict__, "mark": str(place.fence)}


class ElsewhereTransactions(TransactionStore):
    """Transactions of steps in a user's database on another server.

    It holds the record that a step is done in a table of its own, which `durable init --database` creates.
    The lease is not to be seen there, so each attempt registers before its transaction: what an older one
    does after that is rolled back.
    """

    noun = "elsewhere"

    def install(self) -> None:
        """Create the table of transaction steps in this database, if it is not there."""
        ddl = resources.files("celery_durable.store") / "elsewhere.sql"
        with self._connections.dedicated() as connection:
            sql = queries.in_schema(ddl.read_text("utf-8"), self._schema).replace(
                "schema if not exists durable;",
                f"schema if not exists {queries.quote_identifier(self._schema)};",
            )
            connection.execute(sql.encode())

    def _check(self, connection: Any) -> None:
        if connection.execute(self._sql["missing"]).fetchone()[0]:
            message = (
                f"The table of transaction steps is not in {redact(self._url)!r}. "
                f"Run: celery -A <app> durable init --database <name or URL>"
            )
            raise StepUsageError(message)

    def _begin(self, connection: LentConnection, place: Place, form: TransactionForm) -> Kept | None:
        names = self._names(place)
        with connection.pipeline():
            connection.execute(self._sql["register"], names, prepare=self._prepare)
            registered = connection.execute(self._sql["registered"], names, prepare=self._prepare)
        row: Any = registered.fetchone()
        fence, stored, output, codec = row
        if not stored and fence != place.fence:
            raise LeaseLostError(step=place.key)
        with connection.pipeline():
            connection.execute(f"begin isolation level {form.isolation}".encode())
            connection.execute(self._sql["look"], {**names, "idle": _milliseconds(form.limit)})
        return Kept(output, codec, before=True) if stored else None


def _lent(connection: LentConnection, lender: Lender, handle: Any, body: Callable[[Any], T]) -> T:
    """Return what a body returns that has a handle on an open transaction."""
    connection.lend()
    try:
        value = body(handle)
        lender.written(handle)
    except BaseException as error:  # noqa: BLE001  (raised again, when the transaction is rolled back)
        connection.take_back()
        raise _rolled_back(connection, error) from None
    connection.take_back()
    status = connection.pgconn.transaction_status
    if status != TransactionStatus.INTRANS or connection.given_up:
        raise _rolled_back(connection, _not_open(status)) from None
    return value


def _not_open(status: int) -> Exception:
    if status == TransactionStatus.UNKNOWN:
        return psycopg.OperationalError("the connection was lost in the middle of a transaction step")
    if status == TransactionStatus.IDLE:
        message = (
            "The body of a transaction step ended its transaction itself (COMMIT or ROLLBACK): what it "
            "committed cannot be taken back, and no checkpoint is stored. Leave the end of it to the step"
        )
    else:
        message = (
            "The body of a transaction step returned although a statement of it had failed, or it was rolled "
            "back: nothing of it is committed. Put what may fail into a savepoint: "
            "`with connection.transaction():` or `with session.begin_nested():`"
        )
    return StepUsageError(message)


def _rolled_back(connection: LentConnection, error: BaseException) -> Exception:
    """Roll back; return what became of the transaction: its connection is lost, it met another, it raised."""
    status = connection.pgconn.transaction_status
    if status == TransactionStatus.UNKNOWN and isinstance(error, Exception):
        return _not_open(status)
    if status == TransactionStatus.ACTIVE:  # interrupted by a time limit
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=5)
    else:
        with suppress(psycopg.Error):
            connection.execute("rollback")
    if status == TransactionStatus.INERROR and _conflicts(error):
        return _ConflictError(error)
    return _RaisedError(error)


def _conflicts(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made of, says that another transaction was in the way."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        if getattr(error, "sqlstate", None) in _CONFLICTS:
            return True
        error = error.__cause__ or error.__context__
    return False


class _verdicts:  # noqa: N801  (reads as a verb where it is used)
    """Tell what a COMMIT that failed means."""

    def __init__(self, connection: LentConnection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, psycopg.Error) or error.sqlstate is None:
            return
        if not self._connection.closed:
            with suppress(psycopg.Error):
                self._connection.execute("rollback")
        if error.sqlstate == _REFUSED:
            raise _refusal(error) from None
        if error.sqlstate in _CONFLICTS:
            raise _ConflictError(error) from None
        if not isinstance(error, PASSING):  # a constraint that is checked at the end
            raise _RaisedError(error) from None


def _refusal(error: psycopg.Error) -> Exception:
    if error.diag.message_detail == "ended":
        return _RaisedError(_not_open(TransactionStatus.IDLE))
    if error.diag.message_detail == "lost":
        return LeaseLostError()
    return _ConflictError(error)  # stored meanwhile: the next look returns it


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else str(max(1, int(seconds * 1000)))
