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
            count = self._calls[base]
            key = occurrence(base, count)
            if count > 1 and (keyed or key in self._calls):
                raise _taken(base if keyed else key)
            if self._is_number(base):
                raise _taken(base)
            self._flying[base] = thread
            return key

    def _is_number(self, base: str) -> bool:
        """Whether what was chosen, as `fetch#2`, is what a call of `fetch` got by its number."""
        stem, _, number = base.rpartition("#")
        if not number.isdecimal() or base != occurrence(stem, int(number)):
            return False
        return 1 < int(number) <= self._calls[stem]

    def end(self, base: str) -> None:
        """Note that a call is over."""
        self._flying.pop(base, None)


def _taken(key: str) -> StepUsageError:
    message = f"The step key {key!r} is used twice in this run: give each call its own"
    if "#" in key:
        message += ", and none that ends in a number sign and a number, which calls get by their order"
    return StepUsageError(message, step=key)
