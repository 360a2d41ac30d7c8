"""A file in which every execution of a step leaves a line, written by the step itself.

The ledger knows nothing of checkpoints: it is the independent witness of how often a body ran.
"""

from __future__ import annotations

import functools
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from celery import current_task

import celery_durable as durable

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")
Event = Literal["start", "finish", "error"]


@dataclass(frozen=True)
class Entry:
    """One line: `time` in seconds since 1970 by the clock of the worker's machine."""

    time: float
    event: Event
    step: str
    run: str
    worker: str
    pid: int


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Write a line when the function starts and one when it ends, if it runs as a step of a run."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            key = durable.idempotency_key()
        except durable.DurableError:  # called as the plain function it is
            return function(*args, **kwargs)
        _write("start", key)
        try:
            value = function(*args, **kwargs)
        except Exception:
            _write("error", key)
            raise
        _write("finish", key)
        return value

    return wrapper


def ledger_path() -> Path:
    """The ledger lies beside the folders of the runs."""
    return Path(os.environ.get("MEDIA_OUTPUT_DIR", "media-output")).resolve() / "ledger.jsonl"


def read(path: Path, run: str) -> list[Entry]:
    """All lines of one run, in the order they were written; none if there is no ledger yet."""
    try:
        # A line that is being written has no line end yet.
        lines = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []
    return [entry for entry in (Entry(**json.loads(line)) for line in lines) if entry.run == run]


def _write(event: Event, key: str) -> None:
    run, _, step = key.partition("/")
    entry = Entry(time.time(), event, step, run, str(current_task.request.hostname), os.getpid())
    _append(ledger_path(), json.dumps(asdict(entry)) + "\n")


def _append(path: Path, line: str) -> None:
    """One write with O_APPEND, so that lines of several processes never mix; on disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
