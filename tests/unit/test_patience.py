"""Which errors are worth another try."""

from __future__ import annotations

import time

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from psycopg import errors

from celery_durable.exceptions import StoreError, StoreUnavailableError
from celery_durable.store import patience


def meeting(first: BaseException, second: Exception) -> Exception:
    """Return `second` as it is raised while `first` is on its way."""
    try:
        try:
            raise first
        finally:
            raise second
    except type(second) as error:
        return error


def persist(error: Exception) -> str:
    return patience.persist(lambda: "done", error, "'here'", time.monotonic(), 0.0, None, lambda: None)


def test_a_time_limit_that_hits_in_a_pipeline_is_raised_and_not_taken_for_an_outage() -> None:
    limit = SoftTimeLimitExceeded()
    stuck = psycopg.OperationalError("cannot exit pipeline mode with uncollected results")

    with pytest.raises(SoftTimeLimitExceeded) as raised:
        persist(meeting(limit, stuck))
    assert raised.value is limit


def test_an_outage_within_a_pipeline_is_an_outage() -> None:
    stuck = psycopg.OperationalError("cannot exit pipeline mode with uncollected results")
    away = psycopg.OperationalError("server closed the connection unexpectedly")

    with pytest.raises(StoreUnavailableError):
        persist(meeting(away, stuck))


def test_an_outage_while_another_error_is_handled_is_an_outage() -> None:
    away = psycopg.OperationalError("server closed the connection unexpectedly")

    with pytest.raises(StoreUnavailableError):
        persist(meeting(ValueError("the body's own"), away))


@pytest.mark.parametrize(
    "error",
    [
        errors.DiskFull("could not extend file"),
        errors.ProgramLimitExceeded("invalid memory alloc request size"),
        errors.QueryCanceled("canceling statement due to statement timeout"),
        psycopg.OperationalError('FATAL:  password authentication failed for user "durable"'),
    ],
)
def test_what_would_only_come_back_is_raised_at_once(error: Exception) -> None:
    with pytest.raises(StoreError) as raised:
        patience.persist(lambda: "done", error, "'here'", time.monotonic(), 60.0, None, lambda: None)
    assert not isinstance(raised.value, StoreUnavailableError)
