"""Results may end while somebody looks at all of them: the garbage collector chooses the moment."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from celery.result import AsyncResult

from celery_durable.waiting.promises import Promises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """Let the collector look for garbage whenever an object is made."""
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()


@pytest.mark.usefixtures("eager_collector")
@pytest.mark.parametrize(
    "look",
    [Promises.ids, lambda promises: promises.of(["1"]), Promises.with_callbacks, Promises._sweep],
    ids=["ids", "of", "with_callbacks", "sweep"],
)
def test_results_end_while_somebody_looks_at_all_of_them(look: Callable[[Promises], Any]) -> None:
    promises = Promises()
    results = [AsyncResult(str(number)) for number in range(1000)]
    for result in results:
        promises.add(result, weak=False)

    class Garbage:
        """A result that ends when it is collected, and leaves the next one behind."""

        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            if results:
                promises.remove(results.pop())
                Garbage()

    for number in range(2000):
        Garbage()  # several: one that the collector meets too early, it does not look at again for long
        look(promises)
        if number >= 20 and len(results) < 1000:
            break
    assert len(results) < 1000, "some have ended meanwhile"
    results.clear()
