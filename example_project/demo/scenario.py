"""The story: two workers, one video, one SIGKILL."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from example_project import ledger
from example_project.demo.evidence import contradictions, histories
from example_project.demo.workers import running
from example_project.tasks import output_folder, process_video

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.result import AsyncResult

    from example_project.demo.display import Display
    from example_project.demo.evidence import StepHistory
    from example_project.demo.workers import Worker

VICTIM = "transcode"  # the longest step, with steps before and after it
MID_STEP = 0.5  # seconds into that step at which the worker is killed
TICK = 0.1  # seconds between two looks at the ledger


class DemoError(Exception):
    """The demo could not be played to its end."""


@dataclass(frozen=True)
class Ending:
    """How the story ended: the task's result, its executions, and what speaks against the claim."""

    run: str
    result: dict[str, Any]
    steps: list[StepHistory]
    problems: list[str]


class Stage:
    """The demo's surroundings: its folder, its display, and how many seconds it may take."""

    def __init__(self, folder: Path, display: Display, time_limit: float) -> None:
        self.folder = folder
        self.display = display
        self._ledger = ledger.ledger_path()
        self._end = time.monotonic() + time_limit
        self._pause = threading.Event()

    def entries(self, run: str) -> list[ledger.Entry]:
        """The run's ledger so far, which is also shown."""
        entries = ledger.read(self._ledger, run)
        self.display.show(entries)
        return entries

    def wait_until(self, condition: Callable[[], bool], what: str, workers: list[Worker]) -> None:
        """Wait for a condition while the workers live.

        Args:
            condition: looked at ten times a second.
            what: the condition in words, for the error.
            workers: those that must stay alive.

        Raises:
            DemoError: a worker ended, or it took too long.
        """
        while not condition():
            for worker in workers:
                if not worker.alive:
                    raise DemoError(f"Worker {worker.name} stopped: {worker.last_words()} ({worker.log})")
            if time.monotonic() > self._end:
                raise DemoError(f"Gave up waiting until {what}; see {self.folder / 'logs'}.")
            self._pause.wait(TICK)


def play(source: str, stage: Stage) -> Ending:
    """Process a video while the worker that does it is killed.

    Args:
        source: path or URL of the video.
        stage: where it happens.

    Raises:
        DemoError: a worker ended that should not, or something took too long.
    """
    display = stage.display
    logs = stage.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    display.say("Starting Postgres and two workers; nothing else is running")
    with running(["one", "two"], logs) as workers:
        stage.wait_until(lambda: all(worker.ready for worker in workers), "both workers are ready", workers)
        for worker in workers:
            display.say(f"Worker {worker.name} is ready, pid {worker.pid}")
        result = process_video.delay(source)
        display.say(f"Submitted process_video({source!r}) as run {result.id}")
        with display.following():
            killed, step = _kill_the_busy_one(result, workers, stage)
            survivor = next(worker for worker in workers if worker is not killed)
            display.say(f"Waiting for worker {survivor.name} to notice and to take over")
            _follow_to_the_end(result, survivor, stage)
            entries = stage.entries(result.id)
    return _ending(result, histories(entries), step, killed)


def _kill_the_busy_one(
    result: AsyncResult[Any], workers: list[Worker], stage: Stage
) -> tuple[Worker, ledger.Entry]:
    """Wait until a worker is in the middle of the long step, and kill it."""
    begun: list[ledger.Entry] = []

    def in_the_long_step() -> bool:
        entries = stage.entries(result.id)
        begun[:] = [entry for entry in entries if entry.step == VICTIM and entry.event == "start"]
        return bool(begun) or result.ready()

    stage.wait_until(in_the_long_step, f"{VICTIM} has begun", workers)
    if not begun:
        raise DemoError(f"The run ended before {VICTIM}: {result.result}")
    busy = next(worker for worker in workers if worker.is_called(begun[0].worker))
    middle = time.monotonic() + MID_STEP
    stage.wait_until(lambda: time.monotonic() >= middle, f"{VICTIM} is half done", workers)
    if any(entry.step == VICTIM and entry.event == "finish" for entry in stage.entries(result.id)):
        raise DemoError(f"This video is so short that {VICTIM} was over at once; take a longer one.")
    busy.kill()
    stage.display.say(f"SIGKILL to worker {busy.name} (pid {busy.pid}) in the middle of {VICTIM}", "bold red")
    return busy, begun[0]


def _follow_to_the_end(result: AsyncResult[Any], survivor: Worker, stage: Stage) -> None:
    announced = False

    def over() -> bool:
        nonlocal announced
        entries = stage.entries(result.id)
        if not announced and any(survivor.is_called(entry.worker) for entry in entries):
            stage.display.say(f"Worker {survivor.name} goes on after the last checkpoint", "bold green")
            announced = True
        return result.ready()

    stage.wait_until(over, "the run has ended", [survivor])


def _ending(
    result: AsyncResult[Any], steps: list[StepHistory], interrupted: ledger.Entry, killed: Worker
) -> Ending:
    if result.failed():
        raise DemoError(f"The run failed: {result.result}")
    value = result.get()
    problems = contradictions(steps, interrupted.step, interrupted.worker)
    if not killed.was_killed:
        problems.append(f"worker {killed.name} ended by itself and not by SIGKILL")
    missing = [name for name in ("report", "video", "contact_sheet") if not Path(value[name]).stat().st_size]
    problems += [f"the file of {name} is empty" for name in missing]
    return Ending(result.id, value, steps, problems)


def output_files(run: str) -> dict[str, int]:
    """Names and sizes in bytes of what a run left in its folder."""
    folder = output_folder() / run
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
