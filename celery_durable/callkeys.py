"""Keys and lengths of time that calls and tasks name, checked."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery_durable.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Task

_LONGEST_KEY = 1000
_BRACES = frozenset("{}")


def of_task(task: Task[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the key that a task's attribute gives a call; None where it is `True`, which names no key."""
    wanted: Any = inspect.getattr_static(task, name)  # a function that is no method of the task
    wanted = getattr(wanted, "__func__", wanted)
    return None if wanted is True else of_call(task, name, wanted, args, kwargs)


def of_call(
    task: Task[..., Any], name: str, wanted: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Return the key that `wanted` gives a call.

    It is a format string of the task's arguments, such as `"customer-{customer}"`, or a function of them.
    """
    if callable(wanted):
        return checked(task, name, wanted(*args, **kwargs))
    if not isinstance(wanted, str) or not _BRACES.intersection(wanted):
        return checked(task, name, wanted)
    try:
        return checked(task, name, wanted.format(**bound(task, args, kwargs)))
    except (LookupError, ValueError, AttributeError) as error:
        message = f"{task.name}: {name} = {wanted!r} cannot be made of the arguments of this call: {error}"
        raise ConfigurationError(message) from error


def bound(task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, so that `f(1)` and `f(x=1)` are one call."""
    try:
        found = inspect.signature(task.run).bind(*args, **kwargs)
    except TypeError as error:
        message = f"{task.name} cannot be called with these arguments: {error}"
        raise ConfigurationError(message) from error
    found.apply_defaults()
    return found.arguments


def checked(task: Task[..., Any], name: str, value: Any) -> str:
    """Return a key; raise `ConfigurationError` for what cannot be one."""
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > _LONGEST_KEY:
        message = f"{task.name}: {name} = {value!r} is not a printable text of 1 to {_LONGEST_KEY} characters"
        raise ConfigurationError(message)
    return value


def span(task: Task[..., Any], name: str, value: Any) -> timedelta:
    """Return a length of time; raise `ConfigurationError` for what is none."""
    try:
        found = value if isinstance(value, timedelta) else timedelta(seconds=float(value))
    except (TypeError, ValueError, OverflowError):
        found = timedelta(0)
    if found <= timedelta(0):
        message = f"{task.name}: {name} = {value!r} is not a positive length of time"
        raise ConfigurationError(message)
    return found
