"""One module per question; each says what it compares and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.cases import (
    brokers,
    canvas,
    chords,
    imports,
    latency,
    plain,
    queues,
    runs,
    scale,
    throughput,
    timers,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.report import Row
    from benchmarks.setting import Setting

CASES: dict[str, Callable[[Setting], Iterable[Row]]] = {
    "step": latency.step,
    "worker-step": latency.worker_step,
    "throughput": throughput.run,
    "runs": runs.fresh,
    "resume": runs.resumed,
    "plain": plain.run,
    "chords": chords.run,
    "brokers": brokers.run,
    "queues": queues.run,
    "canvas": canvas.run,
    "scale": scale.run,
    "timers": timers.run,
    "waiting": waiting.run,
    "imports": imports.run,
}
"""Every benchmark by the name that `--only` takes."""
