"""How often to ask for results: often at first, then ever more rarely, as a server can bear."""

from __future__ import annotations

from dataclasses import dataclass

_EAGER = 1.0  # seconds of a wait in which its answer is to arrive within milliseconds
_LONG_POLL = 0.03  # seconds that the server looks by itself; who joins meanwhile waits for its end
FEW = 500  # ids: a server that looked for more of them all the time would do little else
_BETWEEN_LOOKS, _LATER_BETWEEN_LOOKS, _SOON = 0.002, 0.003, 0.2
_SHORTEST_PAUSE, LONGEST_PAUSE, _GROWTH = 0.025, 0.05, 0.025
_DOUBT = 0.002
_REST = 4  # times what a question costs: asking takes a fifth of the time at most


@dataclass(frozen=True)
class Question:
    """When and how to ask next.

    Attributes:
        pause: seconds to wait before.
        within: seconds in which the server may look again before it answers that nothing has finished.
        every: seconds between two of its looks.
    """

    pause: float
    within: float = 0.0
    every: float = 0.0


def question(
    age: float, ids: int, cost: float, *, watching: bool = False, longest: float = LONGEST_PAUSE
) -> Question:
    """Return the next question.

    Arguments:
        age: seconds since the youngest wait began.
        ids: how many are asked for.
        cost: seconds that the last question took, the server's sleep not counted.
        watching: whether states that are not final are asked for, too; the server does not wait for these.
        longest: seconds that a pause lasts at most, unless asking is expensive.
    """
    if age >= _EAGER:
        return Question(max(min(longest, _GROWTH * age), rest(cost)))
    if watching or ids > FEW:
        return Question(max(_SHORTEST_PAUSE, rest(cost)))
    return Question(0.0, _LONG_POLL, _BETWEEN_LOOKS if age < _SOON else _LATER_BETWEEN_LOOKS)


def reckoned(cost: float, took: float) -> float:
    """Return what a question costs, after one that took so many seconds.

    One slow answer is the machine's, several in a row are the question's.
    """
    return min(took, 2 * cost + _DOUBT)


def rest(cost: float) -> float:
    """Return how long not to ask after a question that took `cost` seconds."""
    return _REST * cost


class Allowance:
    """How many questions a process may ask: a number at once, and so many a second on average.

    Arguments:
        rate: questions a second.
        burst: how many may be saved up.
        now: seconds by a clock that never goes back.
    """

    def __init__(self, rate: float = 45.0, burst: float = 25.0, *, now: float = 0.0) -> None:
        self._rate, self._burst = rate, burst
        self._saved, self._at = burst, now

    def delay(self, now: float) -> float:
        """Return the seconds until a question is allowed."""
        self._save(now)
        return max(0.0, (1.0 - self._saved) / self._rate)

    def spend(self, now: float) -> None:
        """Count a question; the first one of a wait is asked even where none is allowed."""
        self._save(now)
        self._saved = max(0.0, self._saved - 1.0)

    def _save(self, now: float) -> None:
        self._saved = min(self._burst, self._saved + (now - self._at) * self._rate)
        self._at = now
