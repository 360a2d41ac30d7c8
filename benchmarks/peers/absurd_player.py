"""Absurd in a process of its own: reads commands as JSON lines, answers with seconds.

It is used as its documentation says: `spawn`, then a worker that claims one task and executes it. Waiting for
a poll is no part of the figures. A resume is its own retry of a task that raised, without a delay.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from absurd_sdk import Absurd, TaskContext

from benchmarks.peers.player import serve

app = Absurd(os.environ["BENCH_DATABASE"], queue_name="bench")
_tries: dict[str, int] = {}
_reached: dict[str, float] = {}


@app.register_task(name="steps")
def steps(params: Any, ctx: TaskContext) -> int:
    """Be a run of `count` steps."""
    for number in range(params["count"]):
        ctx.step("note", partial(_note, number))
    return int(params["count"])


@app.register_task(name="resumable", default_max_attempts=2)
def resumable(params: Any, ctx: TaskContext) -> int:
    """Do `count` steps and fail; the second time, note when the body began and when it was past them."""
    _reached["body"] = time.perf_counter()
    for number in range(params["count"]):
        ctx.step("note", partial(_note, number))
    _reached["next"] = time.perf_counter()
    _tries[params["name"]] = _tries.get(params["name"], 0) + 1
    if _tries[params["name"]] == 1:
        message = "the first try fails on purpose"
        raise RuntimeError(message)
    return int(params["count"])


def _note(number: int) -> dict[str, Any]:
    return {"number": number, "path": f"https://example.org/video/{number}", "seconds": 12.5}


def run(count: int) -> float:
    """Return the seconds for spawning, claiming, executing and completing one task."""
    began = time.perf_counter()
    app.spawn("steps", {"count": count})
    app.work_batch()
    return time.perf_counter() - began


def resume(count: int) -> tuple[float, float]:
    """Return the seconds to the step after `count` stored ones: from the claim, and from the body's start."""
    name = str(time.perf_counter())
    app.spawn("resumable", {"count": count, "name": name}, retry_strategy={"kind": "none"})
    app.work_batch()
    began = time.perf_counter()
    app.work_batch()
    if _tries[name] == 1:
        message = "the second try did not start"
        raise RuntimeError(message)
    return _reached["next"] - began, _reached["next"] - _reached["body"]


if __name__ == "__main__":
    app.create_queue("bench")
    serve({"run": run, "resume": resume})
