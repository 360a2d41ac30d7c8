"""All processes of a machine together: steps of a worker's pool children against pgbench's INSERTs.

pgbench inserts the small row, prepared, with as many clients; without pgbench processes with psycopg do.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import time
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import psycopg

from benchmarks import table
from benchmarks.measuring import Spread, interleaved, ratio
from benchmarks.report import Row, Target
from benchmarks.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting

_TARGET = Target(at_least=0.6)
_SCRIPT = "insert into plain (run, key, output) values (1, 'fetch#' || :client_id, '{output}'::bytea);\n"
_PLACES = "/usr/lib/postgresql/*/bin/pgbench", "/opt/homebrew/bin/pgbench", "/usr/local/bin/pgbench"


def run(setting: Setting) -> Iterable[Row]:
    """Compare at several numbers of clients."""
    seconds = setting.rounds(2, 1)
    for clients in (1, 4) if setting.quick else (1, 4, 8):
        samples = _samples(setting, clients, seconds, setting.rounds(7, 3))
        base = "pgbench" if _pgbench() else "psycopg loops"
        label = f"{clients} process{'es' if clients > 1 else ''}"
        yield Row(f"{base}, {label}", Spread.of(samples["insert"]), "INSERT/s")
        yield Row(
            f"steps, {label}",
            Spread.of(samples["step"]),
            "steps/s",
            ratio(samples["step"], samples["insert"]),
            base,
            _TARGET,
        )


def _samples(setting: Setting, clients: int, seconds: int, rounds: int) -> dict[str, list[float]]:
    database = setting.database(f"throughput{clients}")
    with psycopg.connect(database, autocommit=True) as connection:
        table.create(connection)
    worker = Worker(
        setting.directory,
        f"throughput{clients}",
        broker=setting.broker(),
        backend=f"durable+{database}",
        concurrency=clients,
    )
    inserts = _inserts(setting.directory, database, clients, seconds)
    with worker.running():
        return interleaved({"step": _steps(worker, clients, seconds), "insert": inserts}, rounds)


def _steps(worker: Worker, clients: int, seconds: int) -> Callable[[int], float]:
    task = worker.app.tasks["benchmarks.steps_until"]

    def sample(_: int) -> float:
        start_at = time.time() + 1.0
        asked = [task.delay(start_at, seconds) for _ in range(clients)]
        Event().wait(1.0 + seconds)  # nobody polls for results meanwhile
        return float(sum(one.get(timeout=60) for one in asked)) / seconds

    return sample


def _inserts(directory: Path, database: str, clients: int, seconds: int) -> Callable[[int], float]:
    pgbench = _pgbench()
    if pgbench is None:
        return lambda _: _psycopg_rate(database, clients, seconds)
    script = directory / "insert.sql"
    script.write_text(_SCRIPT.format(output="\\x" + table.OUTPUT.hex()))
    command = [
        *(pgbench, "-n", "-M", "prepared", "-f", str(script), "-c", str(clients), "-j", str(clients)),
        *("-T", str(seconds), database),
    ]

    def sample(_: int) -> float:
        told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        found = re.search(r"tps = ([\d.]+)", told)
        return float(found[1]) if found else 0.0

    return sample


def _pgbench() -> str | None:
    found = shutil.which("pgbench")
    places = sorted(str(path) for place in _PLACES for path in Path("/").glob(place.lstrip("/")))
    return found or (places[-1] if places else None)


def _psycopg_rate(database: str, clients: int, seconds: float) -> float:
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        start_at = time.time() + 1.0
        counts = pool.starmap(_insert_until, [(database, start_at, seconds)] * clients, chunksize=1)
    return sum(counts) / seconds


def _insert_until(database: str, start_at: float, seconds: float) -> int:
    with psycopg.connect(database, autocommit=True, prepare_threshold=0) as connection:
        Event().wait(max(0.0, start_at - time.time()))
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            table.insert(connection, count)
            count += 1
        return count
