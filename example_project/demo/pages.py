"""Flower, left open on the run of the demo."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from example_project.demo.workers import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

PATIENCE = 60.0  # seconds for Flower to start


def show(run: str, folder: Path, port: int, console: Console) -> None:
    """Start Flower on loopback, say where the run's page is, and stay until Ctrl-C.

    Args:
        run: the run's id.
        folder: the folder for Flower's log.
        port: a TCP port; 0 for any free one.
        console: where to say it.
    """
    port = port or _free_port()
    # Only this machine can reach it, so its payloads may be seen without a password.
    options = [f"--port={port}", "--address=127.0.0.1", "--durable_payloads=show"]
    with (folder / "flower.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "example_project.app", "flower", *options],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(process, port)
        console.print(f"Flower shows the run: http://127.0.0.1:{port}/durable/run/{run}", soft_wrap=True)
        console.print("Ctrl-C ends it.")
        process.wait()
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    pause, end = threading.Event(), time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        pause.wait(0.1)
    message = "Flower did not start, see logs/flower.log; it comes with pip install 'celery-durable[flower]'"
    raise RuntimeError(message)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
