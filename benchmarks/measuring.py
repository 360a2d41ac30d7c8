"""Samples and ratios. Both sides of a ratio are measured in turn, so that a machine's noise hits both."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_ORDER = random.Random(0)
_BLOCKS = 15


@dataclass(frozen=True)
class Spread:
    """The middle of some samples: median and quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """Return the spread of samples; of a single one it is that one."""
        values = list(samples)
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def times(self, factor: float) -> Spread:
        """Return the same in another unit."""
        return Spread(self.low * factor, self.median * factor, self.high * factor)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def each(names: Iterable[str], work: Callable[[str, int], float]) -> dict[str, Callable[[int], float]]:
    """Return the sides of a comparison that does the same `work` for each name."""
    return {name: partial(work, name) for name in names}


def interleaved(
    sides: Mapping[str, Callable[[int], float]], rounds: int, *, warm_up: int = 0
) -> dict[str, list[float]]:
    """Give each side one turn per round, in an order drawn for each round; return what they measured.

    Arguments:
        sides: by name, what takes the number of a turn and returns a measurement.
        rounds: how many turns are kept of each.
        warm_up: how many come before them.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warm_up + rounds):
        for name in _ORDER.sample(list(sides), len(sides)):
            measured = sides[name](turn)
            if turn >= warm_up:
                samples[name].append(measured)
    return samples


def ratio(side: Sequence[float], base: Sequence[float]) -> Spread:
    """Return how many times `base` a side is: the spread of the ratios of medians of blocks of turns."""
    size = max(1, min(len(side), len(base)) // _BLOCKS)
    return Spread.of(
        statistics.median(side[at : at + size]) / statistics.median(base[at : at + size])
        for at in range(0, min(len(side), len(base)) - size + 1, size)
    )
