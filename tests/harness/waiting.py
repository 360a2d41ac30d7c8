"""The only place where tests wait."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_POLL = 0.01


def eventually(condition: Callable[[], T], *, timeout: float = 20.0, what: str | Callable[[], str] = "") -> T:
    """Return the first true value of `condition`; fail after `timeout` seconds and say what is missing."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what
            message = f"waited {timeout:g} s in vain for {text or condition}; last seen: {value!r}"
            raise AssertionError(message)
        threading.Event().wait(_POLL)


def take(seconds: float) -> None:
    """Do work that takes a while."""
    threading.Event().wait(seconds)
