"""When to try again: Celery's own policy, as pure functions."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LARGEST_EXPONENT = 32  # beyond it every delay is capped anyway; an unbounded power would overflow


@dataclass(frozen=True)
class RetryPolicy:
    """How a step is retried; names and meanings are those of Celery's task options.

    Attributes:
        max_retries: retries after the first try; None retries for ever.
        default_retry_delay: seconds between tries when there is no backoff.
        retry_backoff: False, or the first delay in seconds of an exponential backoff (True is 1).
        retry_backoff_max: the longest delay of the backoff, in seconds.
        retry_jitter: draw each delay of the backoff from the whole range up to it.
        autoretry_for: exceptions that are retried.
        dont_autoretry_for: exceptions among them that are not.
    """

    max_retries: int | None = 3
    default_retry_delay: float = 180.0
    retry_backoff: bool | float = False
    retry_backoff_max: float = 600.0
    retry_jitter: bool = True
    autoretry_for: tuple[type[BaseException], ...] = ()
    dont_autoretry_for: tuple[type[BaseException], ...] = ()

    def delay_after(self, error: BaseException, failures: int) -> float | None:
        """Return the seconds to wait after the `failures`-th failed try, None when it was the last."""
        if not isinstance(error, self.autoretry_for) or isinstance(error, self.dont_autoretry_for):
            return None
        if self.max_retries is not None and failures > self.max_retries:
            return None
        if not self.retry_backoff:
            return self.default_retry_delay
        return backoff(
            failures - 1,
            factor=float(self.retry_backoff),
            maximum=self.retry_backoff_max,
            jitter=self.retry_jitter,
        )


def backoff(retries: int, *, factor: float, maximum: float, jitter: bool) -> float:
    """Return the delay in seconds before retry number `retries` (from 0), never more than `maximum`."""
    delay = min(maximum, factor * 2.0 ** min(retries, _LARGEST_EXPONENT))
    if jitter:
        return random.uniform(0, delay)  # noqa: S311  (spreads load, guards nothing)
    return delay
