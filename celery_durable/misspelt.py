"""Options that Celery would pass over, and that are so close to one of ours that it must be meant."""

from __future__ import annotations

import difflib
from functools import lru_cache
from typing import TYPE_CHECKING

from celery_durable.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery_durable.task import DurableTask

_OF_BOTH = frozenset({"concurrency_key", "concurrency_limit", "deadline", "start_rate"})
_OF_CALLS = _OF_BOTH | {
    "debounce", "debounce_key", "debounce_max", "idempotency_key", "throttle", "throttle_key", "transaction",
    "ttl",
}  # fmt: skip
_OF_TASKS = _OF_BOTH | {"singleton"}
_CLOSE = 0.85


def refuse_options(name: str, options: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a misspelt option among those of a call of the task `name`."""
    for option in options:
        if (meant := _meant(option, _OF_CALLS)) is not None:
            message = f"{name}: a call has no option {option!r}; did you mean {meant!r}?"
            raise ConfigurationError(message)


def refuse_attributes(task: type[DurableTask]) -> None:
    """Raise `ConfigurationError` for a misspelt option of a task that a decorator has made of a function."""
    own = vars(task)
    if not own.get("_decorated"):
        return  # attributes of a class of the user's are the user's
    # Looked up without asking for it: a class whose `app` is asked for is bound to the app that is current.
    of_bases = {name for base in task.__mro__[1:] for name in vars(base)}
    for option in own:
        if option not in of_bases and (meant := _meant(option, _OF_TASKS)) is not None:
            message = f"{task.name}: a task has no option {option!r}; did you mean {meant!r}?"
            raise ConfigurationError(message)


@lru_cache(maxsize=1024)
def _meant(option: str, known: frozenset[str]) -> str | None:
    if option in known:
        return None
    near = difflib.get_close_matches(option.lower(), known, n=1, cutoff=_CLOSE)
    return near[0] if near else None
