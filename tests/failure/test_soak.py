"""The soak of `python -m soaking`, for a moment: that it runs, and that it would see what is wrong."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from soaking.setting import soaking

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("DURABLE_SOAK_SECONDS", "12"))


def test_everything_at_once_under_every_fault_adds_up_in_the_end(
    record_property: Callable[[str, object], None],
) -> None:
    seed = int(os.environ.get("DURABLE_SOAK_SEED", random.randrange(10**6)))
    said: list[str] = []
    with soaking(seed, say=said.append) as soak:
        story = soak.run(SECONDS, patience=60)
        logs = {worker.name: worker.output[-4000:] for worker in soak.world.workers}
    record_property("story", story.text)

    assert not story.violations, f"{story.text}\n{logs}"
    assert story.sent > 20
    assert story.faults
