"""When a consumer looks around: soon after it has come to rest, then more and more rarely."""

from __future__ import annotations


class Looks:
    """The times of one consumer's looks.

    Who publishes while a consumer falls asleep may not see that it sleeps, and commit after the consumer has
    looked for the last time. What is published like that is found by the first looks of a rest.

    Arguments:
        first: seconds from the beginning of a rest to the first look.
        longest: the longest pause between two looks; twice as long for a consumer that never rests.
        growth: how much longer than the one before each pause is.
    """

    def __init__(self, *, first: float, longest: float, growth: float) -> None:
        self._first, self._longest, self._growth = first, longest, growth
        self._pause = first
        self._last = self.next = 0.0

    def rests(self, now: float) -> None:
        """Note that the consumer has just come to rest."""
        self._pause = self._first
        self.next = now + self._pause

    def looked(self, now: float) -> None:
        """Note a look."""
        self._last, self._pause = now, min(self._pause * self._growth, self._longest)
        self.next = now + self._pause

    def worked(self) -> None:
        """Note that messages came without a look: the next one has time, but not for ever."""
        if self._pause >= self._longest:
            self.next = self._last + 2 * self._longest
