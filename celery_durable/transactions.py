"""The `transaction` decorator: a step whose function gets a database handle, done exactly once."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, get_args, overload

from celery_durable import context
from celery_durable.exceptions import StepUsageError
from celery_durable.serialization import parameter_annotation
from celery_durable.steps import Step, StepOptions, checked, named
from celery_durable.store.forms import Handle, Isolation, TransactionForm

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery_durable.store import Store

P = ParamSpec("P")
R = TypeVar("R")

_elsewhere: list[Callable[[], Store]] = []


def outside_of_runs(store: Callable[[], Store]) -> None:
    """Register where a transaction goes that is called outside of any run."""
    _elsewhere.append(store)


@dataclass(frozen=True)
class TransactionOptions(StepOptions):
    """A transaction step's options: a step's, and how its transaction is made.

    Attributes:
        handle: what the function gets: `psycopg` (a `psycopg.Connection`), `connection` or `session` (of
            SQLAlchemy). By default its first parameter's annotation says it, and psycopg without one.
        isolation: `read committed`, `repeatable read` or `serializable`.
        database: a name in `durable_databases`, or a URL; by default the store's own database.
    """

    handle: Handle | None = None
    isolation: Isolation = "read committed"
    database: str | None = None

    def check(self, name: str) -> None:
        """Raise `StepUsageError` for what cannot be meant of a transaction."""
        for option, kinds in (("handle", Handle), ("isolation", Isolation)):
            value = getattr(self, option)
            if value is not None and value not in get_args(kinds):
                message = f"Transaction {name!r}: {option}={value!r} is none of {', '.join(get_args(kinds))}"
                raise StepUsageError(message)
        told: Any = self.database
        if told is not None and not (isinstance(told, str) and told):
            message = f"Transaction {name!r}: database={told!r} is no name in durable_databases, and no URL"
            raise StepUsageError(message)
        if self.at_most_once or self.commit != "sync":
            message = (
                f"Transaction {name!r}: it is done exactly once; at_most_once and commit are no options of it"
            )
            raise StepUsageError(message)


class TransactionStep(Step[P, R]):
    """A step whose function gets a database handle as its first argument, which its callers leave out."""

    step_options: TransactionOptions

    def __init__(self, function: Callable[..., R], options: StepOptions) -> None:
        super().__init__(function, options)
        if self.is_async:
            message = (
                f"{self.name} is a coroutine: the function of a transaction is a plain `def`. "
                f"From an `async def` task call it as it is, or with asyncio.to_thread"
            )
            raise StepUsageError(message)
        if not self._parameters:
            message = f"{self.name} has no parameter for the database handle: it is the first one"
            raise StepUsageError(message)
        self._handle_parameter, self._parameters = self._parameters[0], self._parameters[1:]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function with a handle; inside a run, return what is stored if it was called before.

        Outside of a run it is called in a transaction that is committed when it returns.
        """
        frame = context.current()
        if frame is None:
            return self._plainly(args, kwargs)
        if frame.step is not None:
            message = (
                f"The transaction {self.name!r} is called inside the step {frame.step!r}, where it would not "
                f"be done exactly once. Call it from the task's body, or call its function with a handle: "
                f"{self.name}.function(connection, …)"
            )
            raise StepUsageError(message, step=self.name)
        result: R = frame.execution.step(frame, self, args, kwargs)
        return result

    def _plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        if not _elsewhere:
            message = (
                f"There is no app here whose database {self.name!r} could use: create it with DurableTask, "
                f"or call {self.name}.function(connection, …)"
            )
            raise StepUsageError(message)
        store = _elsewhere[-1]()
        transactions = store.transactions(self.step_options.database)
        function: Callable[..., R] = self.function
        return transactions.plainly(self.form, lambda handle: function(handle, *args, **kwargs))

    @property
    def form(self) -> TransactionForm:
        """How the transaction is made."""
        options = self.step_options
        return TransactionForm(options.handle or self._annotated, options.isolation, options.time_limit)

    @property
    def transacted(self) -> TransactionStep[P, R]:
        """This step: it stores itself, with its transaction."""
        return self

    @property
    def _annotated(self) -> Handle:
        hint = parameter_annotation(self.function, self._handle_parameter)
        wanted = typing.get_origin(hint) or hint
        package = str(getattr(wanted, "__module__", "")).partition(".")[0]
        if package == "sqlalchemy":
            return "session" if "Session" in getattr(wanted, "__name__", "") else "connection"
        return "psycopg"


@overload
def transaction(function: Callable[Concatenate[Any, P], R], /, **options: Any) -> TransactionStep[P, R]: ...
@overload
def transaction(
    **options: Any,
) -> Callable[[Callable[Concatenate[Any, P], R]], TransactionStep[P, R]]: ...
def transaction(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a step that writes to Postgres exactly once: with its checkpoint, in one commit.

    The function gets a handle as its first argument, and its callers leave it out: a `psycopg.Connection`,
    or a `sqlalchemy.Connection` or `sqlalchemy.orm.Session` if its annotation (or `handle=`) says so.
    Returning commits, raising rolls back; commit() and rollback() of the handle are refused. After a
    serialisation failure, a deadlock or a lost connection the function is called again, with nothing of it
    left.

    Options are those of `TransactionOptions`. Raises `StepUsageError` for one that does not exist or cannot
    be meant.

    >>> @transaction(isolation="serializable")
    ... def book(connection, account: str, cents: int) -> None:
    ...     connection.execute("insert into ledger values (%s, %s)", (account, cents))
    """

    def decorate(function: Callable[..., Any]) -> TransactionStep[..., Any]:
        name = named(function, options.get("name"))
        return TransactionStep(function, checked(name, TransactionOptions(), dict(options)))

    return decorate if function is None else decorate(function)
