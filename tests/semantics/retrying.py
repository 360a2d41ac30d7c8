"""Bodies that ask for retries in every way there is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.exceptions import Ignore, Retry

from semantics.bodies import describe
from semantics.journal import note
from semantics.registry import both

if TYPE_CHECKING:
    from celery import Task


@both(bind=True, max_retries=2)
def retry(self: Task, how: str, value: int = 0) -> Any:
    note("body", self.request.id, [self.request.retries, value])
    return _WAYS[how](self, value)


@both(bind=True, autoretry_for=(KeyError,), max_retries=2, retry_backoff=False, default_retry_delay=0.1)
def auto(self: Task, failures: int, error: str = "KeyError") -> int:
    if self.request.retries < failures:
        raise {"KeyError": KeyError, "ValueError": ValueError, "Ignore": Ignore}[error](self.request.retries)
    return int(self.request.retries)


def _once(self: Task, value: int, **options: Any) -> Any:
    if self.request.retries < 1:
        raise self.retry(**options)
    return [self.request.retries, value]


def _exceeded(self: Task, value: int) -> Any:
    raise self.retry(countdown=0.1)


def _exceeded_with_error(self: Task, value: int) -> Any:
    raise self.retry(exc=LookupError(f"for value {value}"), countdown=0.1)


def _from_handler(self: Task, value: int) -> Any:
    try:
        return {}[value]
    except KeyError as error:
        raise self.retry(exc=error, countdown=0.1, max_retries=1) from None


def _without_throw(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        self.retry(countdown=0.1, throw=False)
        return "first"
    return "second"


def _ignored(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        self.retry(countdown=0.1, throw=False)
        raise Ignore
    return "second"


def _caught(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        with suppress(Exception):
            raise self.retry(countdown=0.1)
        return "first"
    return "second"


def _by_hand(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise Retry("by hand", when=0)
    return self.request.retries


def _described(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(countdown=0.1)
    return describe(self)


def _rerouted(self: Task, value: int) -> Any:
    if self.request.retries < 1:
        raise self.retry(countdown=0.1, headers={"own": "header"}, shadow="another")
    return describe(self)


_WAYS = {
    "delayed": lambda self, value: _once(self, value, countdown=0.3),
    "elsewhere": lambda self, value: _once(self, value, countdown=0.1, queue="elsewhere"),
    "patient": lambda self, value: _once(self, value, countdown=0.5, exc=LookupError(f"for value {value}")),
    "changed": lambda self, value: _once(self, value, args=["changed", value + 1], kwargs={}, countdown=0.1),
    "changed keyword": lambda self, value: _once(self, value, kwargs={"value": value + 1}, countdown=0.1),
    "exceeded": _exceeded,
    "exceeded with error": _exceeded_with_error,
    "from handler": _from_handler,
    "without throw": _without_throw,
    "ignored": _ignored,
    "caught": _caught,
    "by hand": _by_hand,
    "described": _described,
    "rerouted": _rerouted,
}
