"""Where the executor meets the world above it: what it asks of Celery's side, and how it leaves the body."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.serialization import ValueCodec
    from celery_durable.store.transactions import TransactionStore
    from celery_durable.store.writes import Stored


class Suspended(BaseException):
    """The run leaves its worker.

    Arguments:
        outcome: what becomes of the attempt.
        delay: seconds until the run is due.
        reason: what it waits for.
        stored: the store knows already: the run has left.
        later: the write that lets it leave, put off until its steps in flight are finished; returns how it
            has left, or None when there is nothing to wait for any more.
        messages: of other runs, to be published once it has.
        error: what kept the attempt from going on, in one line.
    """

    def __init__(
        self,
        outcome: str,
        delay: float = 0.0,
        reason: str | None = None,
        *,
        stored: bool = False,
        later: Callable[[], Suspended | None] | None = None,
        messages: Sequence[Stored] = (),
        error: str | None = None,
    ) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.delay = timedelta(seconds=delay)
        self.reason = reason
        self.stored = stored
        self.later = later
        self.messages = messages
        self.error = error


class Continued(Suspended):
    """The run begins anew with other arguments."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__("replaced")
        self.with_args = args
        self.with_kwargs = kwargs


class ReplayedError(BaseException):
    """The body of a run that rolls back would do something new: all that it has registered is known."""


class Seam(Protocol):
    """What an attempt needs from the world above: Celery's way with values, errors and shutdown."""

    def codec(self, serializer: str | None) -> tuple[str, ValueCodec]:
        """Return the name and the codec of a serializer; None means the app's own."""
        ...

    def dump_error(self, error: BaseException) -> tuple[str, bytes]:
        """Return a stored form of an exception, and what names its format."""
        ...

    def load_error(self, codec: str | None, data: bytes) -> BaseException:
        """Return the exception that a stored form stands for."""
        ...

    def transactions(self, database: str | None) -> TransactionStore:
        """Return the transactions of steps in the store's database, or in another one."""
        ...

    def outcome_of(
        self, state: str, reason: str | None, content_type: str | None, result: bytes | None
    ) -> tuple[bool, Any]:
        """Return whether a child succeeded, and its value or its exception."""
        ...

    def draining(self) -> bool:
        """Say whether this worker is shutting down."""
        ...

    def warn(self, message: str) -> None:
        """Tell the operator."""
        ...

    @property
    def control_flow(self) -> tuple[type[BaseException], ...]:
        """Exceptions that are no failure of a step: they pass through and are not stored."""
        ...

    @property
    def cut_off(self) -> tuple[type[BaseException], ...]:
        """Those among them after which a body may go on: then the step has ended so, and it is stored."""
        ...
