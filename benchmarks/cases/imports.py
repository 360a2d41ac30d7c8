"""What `import celery_durable` adds to a program that imports Celery; each sample is a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.measuring import Spread, interleaved
from benchmarks.report import Row, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting

_APP = "from celery import Celery, Task; from kombu import Exchange; app = Celery(); app.finalize()"
_PROGRAM = "import time; {before}; began = time.perf_counter(); {after}; print(time.perf_counter() - began)"
_LIMIT = Target(at_most=60, of="figure")


def run(setting: Setting) -> Iterable[Row]:
    """Measure the package alone, and the classes that every app uses."""
    names = {
        "import celery_durable, after import celery": ("import celery", "import celery_durable"),
        "from celery_durable import DurableTask, step, after an app is made": (
            _APP,
            "from celery_durable import DurableTask, step",
        ),
    }
    samples = interleaved(
        {name: _import(*parts) for name, parts in names.items()}, setting.rounds(15, 5), warm_up=1
    )
    for name, seconds in samples.items():
        yield Row(name, Spread.of(seconds).times(1000), "ms", target=_LIMIT)


def _import(before: str, after: str) -> Callable[[int], float]:
    program = _PROGRAM.format(before=before, after=after)

    def sample(_: int) -> float:
        command = [sys.executable, "-c", program]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    return sample
