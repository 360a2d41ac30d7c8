"""When a step or a run is tried again."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_durable.retry import RetryPolicy, backoff


class TransportError(OSError):
    """The network."""


def policy(**options: Any) -> RetryPolicy:
    return RetryPolicy(**{"autoretry_for": (OSError,), "default_retry_delay": 7.0, **options})


def test_without_autoretry_for_nothing_is_retried() -> None:
    assert RetryPolicy().delay_after(ValueError(), 1) is None


def test_only_the_named_errors_and_their_kin_are_retried() -> None:
    chosen = policy(dont_autoretry_for=(TransportError,))

    assert chosen.delay_after(ConnectionError(), 1) == 7.0
    assert chosen.delay_after(TransportError(), 1) is None
    assert chosen.delay_after(ValueError(), 1) is None


def test_max_retries_counts_what_comes_after_the_first_try() -> None:
    chosen = policy(max_retries=2)

    assert [chosen.delay_after(OSError(), failures) for failures in (1, 2, 3)] == [7.0, 7.0, None]
    assert policy(max_retries=0).delay_after(OSError(), 1) is None
    assert policy(max_retries=None).delay_after(OSError(), 10**9) == 7.0


def test_backoff_doubles_from_its_first_delay_and_stops_at_its_longest() -> None:
    chosen = policy(max_retries=None, retry_backoff=3, retry_backoff_max=20, retry_jitter=False)

    assert [chosen.delay_after(OSError(), failures) for failures in range(1, 6)] == [3, 6, 12, 20, 20]


def test_backoff_true_begins_with_a_second() -> None:
    assert policy(retry_backoff=True, retry_jitter=False).delay_after(OSError(), 1) == 1


def test_a_run_that_failed_a_billion_times_still_has_a_delay() -> None:
    """The power overflowed elsewhere, and wedged a queue for ever."""
    assert backoff(10**9, factor=1e300, maximum=600, jitter=False) == 600


@given(
    st.integers(0, 10**6),
    st.floats(0, 1e300, allow_nan=False),
    st.floats(0, 1e300, allow_nan=False),
)
def test_jitter_draws_from_the_whole_range_and_never_beyond(
    retries: int, factor: float, maximum: float
) -> None:
    longest = backoff(retries, factor=factor, maximum=maximum, jitter=False)

    assert 0 <= backoff(retries, factor=factor, maximum=maximum, jitter=True) <= longest <= maximum


def test_jitter_spreads() -> None:
    delays = [backoff(0, factor=100, maximum=100, jitter=True) for _ in range(200)]

    assert min(delays) < 30
    assert max(delays) > 70
