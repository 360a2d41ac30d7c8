"""DBOS in a process of its own: reads commands as JSON lines, answers with seconds.

DBOS is used as its documentation says: a decorated workflow called directly, its system database on the same
Postgres, every default as it is but for the log level. A resume is a recovery at launch after a crash.
"""

from __future__ import annotations

import os
import sys
import time
from threading import Event
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from benchmarks.peers.player import serve

_reached: dict[str, float] = {}
_done = Event()


@DBOS.step()
def note(number: int) -> dict[str, Any]:
    """Return what every peer can store without further ado."""
    return {"number": number, "path": f"https://example.org/video/{number}", "seconds": 12.5}


@DBOS.workflow()
def steps(count: int) -> int:
    """Be a run of `count` steps."""
    for number in range(count):
        note(number)
    return count


@DBOS.workflow()
def resumable(count: int) -> int:
    """Do `count` steps and crash; after recovery, note when the body began and when it was past them."""
    _reached["body"] = time.perf_counter()
    for number in range(count):
        note(number)
    if "BENCH_CRASH" in os.environ:
        os._exit(9)
    _reached["next"] = time.perf_counter()
    _done.set()
    return count


def _launch() -> None:
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": os.environ["BENCH_DATABASE"],
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()


def run(count: int) -> float:
    """Return the seconds from the call of a workflow to its result."""
    began = time.perf_counter()
    steps(count)
    return time.perf_counter() - began


def main() -> None:
    """Play the part that the environment names."""
    launched = time.perf_counter()
    if "BENCH_CRASH" in os.environ:
        _launch()
        with SetWorkflowID(os.environ["BENCH_CRASH"]):
            resumable(int(sys.argv[1]))
    elif "BENCH_RECOVER" in os.environ:
        _launch()
        if not _done.wait(120):
            sys.exit("DBOS did not recover the workflow within 120 s")
        print(_reached["next"] - launched, _reached["next"] - _reached["body"], flush=True)
    else:
        _launch()
        serve({"run": run})
    DBOS.destroy()


if __name__ == "__main__":
    main()
