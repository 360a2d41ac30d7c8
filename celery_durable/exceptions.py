"""Every error celery-durable raises on purpose, under one root.

The docstring of a class is its default message; the facts an operator needs are attributes,
so that nothing has to be parsed out of a text. All of them survive pickling, because Celery's
prefork pool sends exceptions between processes.
"""

from __future__ import annotations

import inspect
from typing import Any


class DurableError(Exception):
    """celery-durable failed."""

    def __init__(self, message: str | None = None, **facts: Any) -> None:
        super().__init__(message or inspect.getdoc(type(self)) or "")
        self.facts = facts
        self.__dict__.update(facts)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args[0], self.facts)


def _rebuild(cls: type[DurableError], message: str, facts: dict[str, Any]) -> DurableError:
    return cls(message, **facts)


class ConfigurationError(DurableError):
    """A durable setting or URL is wrong."""


class StoreError(DurableError):
    """The store could not do what was asked."""


class StoreUnavailableError(StoreError):
    """Postgres did not answer within the outage budget; nothing that was committed is lost."""


class SchemaMissingError(StoreError):
    """The durable schema is not in this database. Run `celery -A <app> durable init`."""


class SchemaVersionError(StoreError):
    """The durable schema does not match this version of celery-durable."""


class PostgresVersionError(StoreError):
    """celery-durable needs Postgres 14 or newer."""


class EmbeddedPostgresError(StoreError):
    """The embedded Postgres could not be started."""


class RunNotFoundError(DurableError):
    """No run has this id."""


class StepNotFoundError(DurableError):
    """The run has no stored step with this key."""


class RunStateError(DurableError):
    """The run's state does not allow this operation."""


class LeaseLostError(DurableError):
    """Another attempt owns this run now: nothing this attempt writes is stored any more."""


class NondeterminismError(DurableError):
    """The task's body did not follow the history recorded for this run."""


class SerializationError(DurableError):
    """A value cannot be stored."""


class PayloadTooLargeError(SerializationError):
    """A value is larger than `durable_max_payload`."""


class StepUsageError(DurableError):
    """A step was called in a way that cannot be replayed."""


class TransactionUsageError(DurableError):
    """`transaction=` was given something in which a run cannot be stored."""


class StepInterruptedError(DurableError):
    """An at-most-once step was started and its outcome is unknown, so it is not run again."""


class StepTimeLimitError(DurableError):
    """A step ran longer than its `time_limit`."""


class ExhaustedError(DurableError):
    """The run kept losing its worker and its recoveries are used up."""

    @classmethod
    def after(cls, run: str, max_recoveries: int, last: object) -> ExhaustedError:
        """Return the error of a run that lost its worker once too often."""
        return cls(
            f"The run lost its worker {max_recoveries + 1} times "
            f"(durable_max_recoveries = {max_recoveries}); the last time: {last}. "
            f"Once the cause is mended: celery -A <app> durable resume {run}",
            run=run,
        )


class SignalTimeout(DurableError):  # noqa: N818  (says what happened, as Celery's SoftTimeLimitExceeded does)
    """No signal of this name came in time."""


class SignalTokenError(DurableError):
    """A token for a signal is damaged, forged or expired."""


class RollbackError(DurableError):
    """What a run has done could not be taken back; `celery -A <app> durable resume` tries what is left."""


class Fatal(DurableError):  # noqa: N818  (a verdict that users raise, as in `raise durable.Fatal(...)`)
    """The run cannot succeed: fail at once, without retries."""


class RunCancelled(BaseException):
    """The run was cancelled: raised at the next step or wait, so that the body can clean up."""


TERMINAL = (
    Fatal,
    ConfigurationError,
    NondeterminismError,
    LeaseLostError,
    SerializationError,
    SignalTimeout,
    StepUsageError,
    StepInterruptedError,
    StoreUnavailableError,
)
"""Errors that a retry of the run cannot mend."""
