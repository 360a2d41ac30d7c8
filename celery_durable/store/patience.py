"""Patience: a write that Postgres did not answer is done again, until it answers or a budget is used up."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout

from celery_durable.exceptions import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Worth another try: the server went away or is not ready, or another transaction was in the way.
PASSING = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, errors.ReadOnlySqlTransaction)
# Among them what would only come back: a value too large, a full disk, a cancelled query.
_LASTING = re.compile(r"53100|53200|54...|57014")
# The server answered, and said that these credentials or names are wrong.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry"
    r'|(database|role) ".*" (does not exist|is not permitted)|permission denied for'
)
_BROKEN = re.compile(r"08...|57P..")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def persist(  # noqa: PLR0917  (one try and what it may take)
    work: Callable[[], T],
    error: Exception,
    where: str,
    began: float,
    budget: float,
    give_up: Callable[[], bool] | None,
    broken: Callable[[], None],
) -> T:
    """Do `work` again after `error`, until `budget` seconds have passed since it `began` (monotonic).

    `broken` is called when connections are lost, so that the others, which are lost too, are not tried.
    Raises `StoreUnavailableError` at the end of the budget or when `give_up()` says so, and what is no outage
    at once.
    """
    deadline = began + budget
    pause = _FIRST_PAUSE
    _raise_lasting(error, where)
    logger.warning("Postgres is away, trying again: %s", first_line(error))
    while True:
        if time.monotonic() >= deadline or (give_up is not None and give_up()):
            message = (
                f"Postgres did not answer for {budget:g} s ({first_line(error)}); nothing committed is lost"
            )
            raise StoreUnavailableError(message) from error
        if _connection_lost(error):
            broken()
        threading.Event().wait(min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - time.monotonic())))  # noqa: S311
        pause = min(pause * 2, _LONGEST_PAUSE)
        try:
            result = work()
        except PASSING as again:
            error = again
            _raise_lasting(error, where)
        else:
            logger.warning("Postgres is back")
            return result


def unavailable(error: Exception, where: str, broken: Callable[[], None]) -> StoreUnavailableError:
    """Return what to raise after one try; raise at once what another try cannot mend."""
    _raise_lasting(error, where)
    if _connection_lost(error):
        broken()
    return StoreUnavailableError(f"Postgres did not answer ({first_line(error)}); nothing committed is lost")


def _raise_lasting(error: Exception, where: str) -> None:
    """Raise what another try cannot mend."""
    interrupt = error.__context__
    if "pipeline mode" in str(error) and interrupt is not None and not isinstance(interrupt, psycopg.Error):
        raise interrupt  # a time limit hit inside a pipeline, which then could not be left in order
    if _REFUSED.search(str(error)):
        message = f"Postgres refuses {where}: {first_line(error)}"
        raise StoreError(message) from error
    state = getattr(error, "sqlstate", None)
    if state is not None and _LASTING.fullmatch(state):
        message = f"Postgres cannot do this: {first_line(error)}"
        raise StoreError(message) from error


def _connection_lost(error: Exception) -> bool:
    state = getattr(error, "sqlstate", None)
    return not isinstance(error, PoolTimeout) and (state is None or bool(_BROKEN.fullmatch(state)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
