"""Whole runs, and runs that go on after a break, against DBOS and Absurd on the same Postgres.

A run counts from its submission until its outcome is committed, without the waits for a poll or a broker:
for celery-durable the call of `delay()` plus the time in the worker from the message to the commit (claim,
steps, finish); for DBOS a direct call of the workflow, its fastest way; for Absurd `spawn` plus one claim and
the execution.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Spread, each, interleaved, ratio, timed
from benchmarks.peers.player import need_dbos, playing, prepare_absurd
from benchmarks.report import Row, Target
from benchmarks.setting import Skipped
from benchmarks.workers import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.peers.player import Player
    from benchmarks.setting import Setting

_OURS = "celery-durable"
_SIZES = (1, 10, 100)
_TARGETS = {("DBOS", 100): Target(at_least=5), ("Absurd", 100): Target(at_least=3)}
_RESUME = Target(at_most=50, of="figure")
_BODY = 1


def fresh(setting: Setting) -> Iterable[Row]:
    """Compare runs of 1, 10 and 100 steps."""
    sides: dict[str, Callable[[int], float]] = {_OURS: _ours(_worker(setting, "runs"))}
    sides |= {name: _peer(player) for name, player in _peers(setting).items()}
    for size in _SIZES:
        rounds = setting.rounds(30, 8) if size < max(_SIZES) else setting.rounds(15, 4)
        speeds = _speeds(sides, size, rounds)
        label = f"run of {size} step{'s' if size > 1 else ''}"
        yield Row(f"{_OURS}, {label}", Spread.of(speeds[_OURS]), "steps/s")
        for name in list(sides)[1:]:
            yield Row(f"{name}, {label}", Spread.of(speeds[name]), "steps/s")
            yield Row(
                f"{_OURS} to {name}, {label}",
                None,
                "",
                ratio(speeds[_OURS], speeds[name]),
                name,
                _TARGETS.get((name, size)),
            )


def _speeds(sides: dict[str, Callable[[int], float]], size: int, rounds: int) -> dict[str, list[float]]:
    return interleaved(each(sides, lambda name, _: size / sides[name](size)), rounds, warm_up=2)


def _worker(setting: Setting, name: str) -> Worker:
    worker = Worker(
        setting.directory,
        name,
        broker=setting.broker(),
        backend=f"durable+{setting.database(name)}",
        concurrency=1,
    )
    return setting.open_things.enter_context(worker.running())


def _peers(setting: Setting) -> dict[str, Player]:
    peers = {}
    try:
        need_dbos()
        peers["DBOS"] = setting.open_things.enter_context(playing("dbos", setting.database("dbos")))
    except Skipped as reason:
        setting.say(f"without DBOS: {reason}")
    try:
        database = prepare_absurd(setting.database("absurd"))
        peers["Absurd"] = setting.open_things.enter_context(playing("absurd", database))
    except Skipped as reason:
        setting.say(f"without Absurd: {reason}")
    return peers


def _ours(worker: Worker) -> Callable[[int], float]:
    steps, durations = (worker.app.tasks[f"benchmarks.{name}"] for name in ("steps", "durations"))
    steps.delay(1).get(timeout=30)
    durations.delay().get(timeout=30)

    def run(size: int) -> float:
        asked: list[Any] = []
        submitting = timed(lambda: asked.append(steps.delay(size)))
        asked[0].get(timeout=120)
        (executing,) = durations.delay().get(timeout=30)
        return submitting + float(executing)

    return run


def _peer(player: Player) -> Callable[[int], float]:
    return lambda size: float(player.ask("run", size))


def resumed(setting: Setting) -> Iterable[Row]:
    """Compare the way to step 101 and to step 1,001 of a run that comes back."""
    resumable = _worker(setting, "resume").app.tasks["benchmarks.resumable"]
    nothing_stored = [resumable.delay(0).get(timeout=60)[0] for _ in range(setting.rounds(15, 5))]
    yield Row("celery-durable, one claim (no step stored)", Spread.of(nothing_stored).times(1000), "ms")
    peers = _peers(setting)
    for size in (100,) if setting.quick else (100, 1000):
        sides: dict[str, Callable[[], tuple[float, float]]] = {_OURS: partial(_resumed, resumable, size)}
        if "DBOS" in peers:
            sides["DBOS"] = partial(_recovered_dbos, setting, size)
        if "Absurd" in peers:
            sides["Absurd"] = partial(peers["Absurd"].ask, "resume", size)
        yield from _ways(sides, size, setting.rounds(7 if size < max(_SIZES) * 2 else 4, 3))


def _resumed(task: Any, size: int) -> tuple[float, float]:
    whole, body = task.delay(size).get(timeout=120)
    return float(whole), float(body)


def _ways(sides: dict[str, Callable[[], tuple[float, float]]], size: int, rounds: int) -> Iterable[Row]:
    whole: dict[str, list[float]] = {name: [] for name in sides}
    body: dict[str, list[float]] = {name: [] for name in sides}

    def turn(name: str, _: int) -> float:
        way = sides[name]()
        whole[name].append(way[0])
        body[name].append(way[_BODY])
        return way[0]

    interleaved(each(sides, turn), rounds)
    for name in sides:
        base = name == _OURS
        target = _RESUME if base and size > max(_SIZES) else None
        yield Row(
            f"{name}, {size:,} stored steps, from the body's start",
            Spread.of(body[name]).times(1000),
            "ms",
            None if base else ratio(body[name], body[_OURS]),
            "" if base else _OURS,
            target,
        )
        yield Row(
            f"{name}, {size:,} stored steps, from the {_START[name]}",
            Spread.of(whole[name]).times(1000),
            "ms",
            None if base else ratio(whole[name], whole[_OURS]),
            "" if base else _OURS,
        )


_START = {_OURS: "message (claim and history included)", "DBOS": "process's launch", "Absurd": "claim"}


def _recovered_dbos(setting: Setting, size: int) -> tuple[float, float]:
    """Let a workflow crash after its steps, and a new process with the same executor id recover it."""
    environment = {**os.environ, "BENCH_DATABASE": setting.database("dbos_crash")}
    command = [sys.executable, "-m", "benchmarks.peers.dbos_player", str(size)]
    crash = {**environment, "BENCH_CRASH": str(uuid.uuid4())}
    subprocess.run(command, env=crash, capture_output=True, timeout=120, check=False)  # it exits at once
    recover = {**environment, "BENCH_RECOVER": "1"}
    told = subprocess.run(
        command, env=recover, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    whole, body = (float(number) for number in told.split()[-2:])
    return whole, body
