"""What Postgres refuses because of how it was set up, and what to do about it."""

from __future__ import annotations

from psycopg import errors

from celery_durable.exceptions import StoreError

REFUSED = (errors.InsufficientPrivilege, errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName)

_RIGHTS = (
    "Grant it, as the documentation's page on roles (how-to/least-privilege-roles) says; "
    "`celery -A <app> durable doctor` tells what a role may do"
)
_POOLER = (
    "This looks like PgBouncer in transaction mode, where statements must not be prepared: set "
    "durable_prepare_statements = False, and in an app without durable tasks "
    "broker_transport_options = {'prepare_statements': False}"
)


def with_hint(error: BaseException) -> StoreError:
    """Return one of the `REFUSED` as an error that says what to do."""
    told = str(error).partition("\n")[0]
    return StoreError(f"{told}. {_RIGHTS if isinstance(error, errors.InsufficientPrivilege) else _POOLER}")
