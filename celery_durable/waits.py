"""What a body waits for by name: a time, or a signal. The run leaves its worker and comes back."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn, TypeVar, overload

from celery_durable import context
from celery_durable.exceptions import DurableError, StepUsageError
from celery_durable.serialization import MISSING
from celery_durable.tokens import checked_name

T = TypeVar("T")
_Timeout = timedelta | float | None

_NO_LENGTH: Any = MISSING
_SECONDS = (604_800, 86_400, 3600, 60, 1, 0.001)


def sleep(
    length: timedelta | float = _NO_LENGTH,
    /,
    *,
    weeks: float | None = None,
    days: float | None = None,
    hours: float | None = None,
    minutes: float | None = None,
    seconds: float | None = None,
    milliseconds: float | None = None,
) -> None:
    """Wait for a length of time, in the database: until then the run leaves its worker and costs nothing.

    The due time is fixed by the database's clock when the body first gets here; a crash neither extends nor
    restarts it. Up to `durable_step_sleep` seconds are waited for on the worker, but not in an `async def`
    body. A length of nothing or less returns at once. Outside a run it waits as `time.sleep` does.

    Arguments:
        length: a `timedelta`, or seconds; instead of the units that follow.
        weeks: weeks, of any fraction; all units are added up.
        days: days.
        hours: hours.
        minutes: minutes.
        seconds: seconds.
        milliseconds: milliseconds.

    Raises `StepUsageError` inside a step or a thread of the body's own, for more than a hundred years, and
    where no length is given.

    >>> sleep(milliseconds=1)
    """
    units = (weeks, days, hours, minutes, seconds, milliseconds)
    given = [_real(unit) * each for unit, each in zip(units, _SECONDS, strict=True) if unit is not None]
    if length is _NO_LENGTH:
        if not given:
            message = "sleep() is given no length of time: say sleep(60), sleep(minutes=1) or a timedelta"
            raise StepUsageError(message)
        length = sum(given)
    elif any(given):
        message = f"sleep({length!r}, …) is given units as well: name one or the others"
        raise StepUsageError(message)
    span = _span(length, "sleep")
    frame = context.current()
    if frame is None:
        threading.Event().wait(max(span.total_seconds(), 0))
    else:
        frame.execution.sleep(frame, span, None)


def sleep_until(when: datetime, /) -> None:
    """Wait until a moment by the database's clock; return at once when it is over.

    Arguments:
        when: a moment with a time zone.

    Raises `StepUsageError` for one without, and where `sleep` does.
    """
    told: Any = when
    if not isinstance(told, datetime):
        message = f"sleep_until({when!r}) is given no datetime; for a length of time there is sleep"
        raise StepUsageError(message)
    if when.tzinfo is None:
        message = (
            f"sleep_until({when!r}) says no time zone: give the moment one, such as datetime.timezone.utc"
        )
        raise StepUsageError(message)
    frame = context.current()
    if frame is None:
        now = datetime.now(timezone.utc)  # noqa: TID251  (outside a run there is no other clock)
        span = _span(when - now, "sleep_until")
        threading.Event().wait(max(span.total_seconds(), 0))
    else:
        frame.execution.sleep(frame, None, when)


@overload
def wait_for_signal(name: str, *, timeout: _Timeout = None, type: type[T]) -> T: ...
@overload
def wait_for_signal(name: str, *, timeout: _Timeout = None, type: Any = MISSING) -> Any: ...
def wait_for_signal(name: str, *, timeout: _Timeout = None, type: Any = MISSING) -> Any:  # noqa: A002
    """Wait until somebody sends this run a signal, and return its payload.

    Signals of one name are received in the order in which they were sent, each once; one that was sent before
    is received at once. The run leaves its worker while it waits.

    Arguments:
        name: the signal's name.
        timeout: a `timedelta`, or seconds; None waits for ever.
        type: what the payload is, such as a dataclass or a pydantic model; by default what JSON makes of it.

    Raises `SignalTimeout` when none came in time, and `StepUsageError` inside a step or a thread of the
    body's own.
    """
    checked_name(name)
    span = None if timeout is None else _span(timeout, "wait_for_signal")
    frame = context.current()
    if frame is None:
        message = f"wait_for_signal({name!r}) is called outside a run: nobody could send it a signal"
        raise DurableError(message)
    return frame.execution.wait_for_signal(frame, name, span, type)


def continue_as(*args: Any, **kwargs: Any) -> NoReturn:
    """End this run's history, and begin the run anew with these arguments: for a body that goes on for ever.

    It keeps its id, its caller, its links and the signals that wait for it; its steps, waits and retries
    count from the beginning. Does not return.

    Raises `DurableError` outside a run, and `StepUsageError` inside a step.
    """
    frame = context.current()
    if frame is None:
        message = "continue_as() is called outside a run: there is nothing to continue"
        raise DurableError(message)
    frame.execution.continue_as(frame, args, kwargs)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        message = f"sleep: {value!r} is not a number"
        raise StepUsageError(message)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        message = "a bool is none"
        raise TypeError(message)
    number: float = value
    return number


def _span(length: timedelta | float, what: str) -> timedelta:
    try:
        span = length if isinstance(length, timedelta) else timedelta(seconds=_number(length))
    except (OverflowError, TypeError, ValueError) as error:
        message = f"{what}: {length!r} is not a number of seconds or a timedelta ({error})"
        raise StepUsageError(message) from error
    if span > context.LONGEST_WAIT:
        advice = (
            "leave the timeout out to wait for ever" if what == "wait_for_signal" else "nothing waits so long"
        )
        message = f"{what}: {span} is longer than a hundred years; {advice}"
        raise StepUsageError(message)
    return span
