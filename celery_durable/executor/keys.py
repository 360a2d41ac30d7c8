"""Keys of calls: a name and how often it came before, or the key of one's own."""

from __future__ import annotations

import re
import threading
from collections import Counter

from celery_durable.checkpoint import occurrence
from celery_durable.exceptions import StepUsageError

_BRANCH = re.compile(r"(?:[^/]*/)*\[\d+\]/")


def branch(key: str) -> str:
    """Return the scope of the asyncio task that made a call: `[2]/[1]/` for `[2]/[1]/fetch#2`, or nothing."""
    found = _BRANCH.match(key)
    return "" if found is None else found[0]


class Keys:
    """Gives each call of a body its key, in the order of the calls."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._flying: dict[str, int] = {}
        self._lock = threading.Lock()

    def begin(self, base: str, *, keyed: bool) -> str:
        """Give a call its key; calls of one name at the same time need keys of their own."""
        thread = threading.get_ident()
        with self._lock:
            if self._flying.get(base, thread) != thread:
                message = (
                    f"Step {base!r} is called from several threads at once: at a replay its calls would get "
                    f"their keys in another order. Give each one its own: step.options(key=...)(...)"
                )
                raise StepUsageError(message, step=base)
            self._calls[base] += 1
            if keyed and self._calls[base] > 1:
                message = f"The step key {base!r} is used twice in this run: give each call its own"
                raise StepUsageError(message, step=base)
            key = occurrence(base, self._calls[base])
            self._flying[base] = thread
            return key

    def end(self, base: str) -> None:
        """Note that a call is over."""
        self._flying.pop(base, None)
