"""Let workers die while they handle many messages, and Postgres too; then look what was lost or doubled.

    python -m benchmarks.soak                                     100,000 messages, some minutes
    python -m benchmarks.soak --messages 5000 --kills 6 --crashes 1

An embedded Postgres of its own is the broker. Late acknowledging tasks of prefork workers note when they
begin and end. Workers are SIGKILLed at random and replaced, Postgres crashes now and then. At the end every
number must have been handled, and no message may have been with two workers at once that were both alive.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING, Any

from celery import Celery, Task
from kombu.exceptions import OperationalError

from benchmarks.setting import temporary_directory
from celery_durable import transport
from celery_durable.config import Settings
from celery_durable.store import Store
from celery_durable.store.embedded import ensure_server, release_server
from celery_durable.transport.capture import CLAIM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

transport.register()

_QUEUE = "soak"
_BATCH = 500
_LOOK = 0.5  # seconds between two looks at what was handled


def make_app(folder: str) -> Celery:
    """Return the app; its tasks write a line when they begin and when they end."""
    app = Celery("soak", broker=f"durable+embedded://{folder}/postgres", set_as_current=False)
    app.conf.update(
        task_default_queue=_QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"max_returns": 1000},  # none of these messages is to blame
        worker_hijack_root_logger=False,
    )

    @app.task(name="soak.note", bind=True, shared=False)
    def note(self: Task, number: int) -> None:
        claim: Any = self.request.properties["delivery_info"][CLAIM]
        _write(folder, "begin", number, claim[2], self.request.hostname)
        _write(folder, "end", number, claim[2], self.request.hostname)

    return app


def _write(folder: str, event: str, number: int, message: int, worker: Any) -> None:
    line = json.dumps([event, number, message, worker, time.monotonic()]) + "\n"
    file = os.open(f"{folder}/notes/{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)


if "SOAK_FOLDER" in os.environ:
    app = make_app(os.environ["SOAK_FOLDER"])


@dataclass
class Report:
    """What came of it."""

    messages: int
    missing: set[int] = field(default_factory=set)
    overlaps: list[str] = field(default_factory=list)
    executions: int = 0
    seconds: float = 0.0
    kills: int = 0
    crashes: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing was lost and nothing was with two living workers."""
        return not self.missing and not self.overlaps

    def __str__(self) -> str:
        lost = f"{len(self.missing)} never handled" if self.missing else "every one handled"
        twice = (
            f"{len(self.overlaps)} with two living workers"
            if self.overlaps
            else "none with two living workers"
        )
        return (
            f"{self.messages:,} messages in {self.seconds:.0f} s ({self.messages / self.seconds:.0f}/s), "
            f"{self.kills} workers killed, Postgres crashed {self.crashes} times: {lost}, {twice}, "
            f"{self.executions - self.messages + len(self.missing)} begun again"
        )


class Soak:
    """A run of it.

    Arguments:
        folder: for the server, notes and logs.
        chosen: the command's options.
    """

    def __init__(self, folder: Path, chosen: argparse.Namespace) -> None:
        self.folder, self.chosen = folder, chosen
        self.chance = random.Random(chosen.seed)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.died: dict[str, float] = {}
        self.report = Report(chosen.messages)
        self._started = 0
        (folder / "notes").mkdir()
        self.url = ensure_server(folder / "postgres")
        store = Store(self.url, Settings())
        store.migrate()
        store.close()
        self.app = make_app(str(folder))

    def run(self) -> Report:
        """Publish, kill and crash until everything is handled, or the time is over; look at what happened."""
        self._publish()
        began = time.monotonic()
        for _ in range(self.chosen.workers):
            self._start()
        moments = self._moments()
        due, act = next(moments)
        while (
            done := self._handled()
        ) < self.chosen.messages and time.monotonic() - began < self.chosen.timeout:
            if done >= due:
                act()
                due, act = next(moments)
            Event().wait(_LOOK)
        self.report.seconds = time.monotonic() - began
        self._check()
        return self.report

    def _publish(self) -> None:
        with self.app.producer_pool.acquire(block=True) as producer:
            for first in range(0, self.chosen.messages, _BATCH):
                with producer.batch():
                    for number in range(first, min(first + _BATCH, self.chosen.messages)):
                        self.app.send_task("soak.note", (number,), producer=producer)

    def _moments(self) -> Iterator[tuple[float, Any]]:
        """Yield at how many handled messages what is to happen."""
        number = self.chosen.messages
        acts = [(self.chance.uniform(0, 0.9) * number, self._kill) for _ in range(self.chosen.kills)]
        acts += [(self.chance.uniform(0.1, 0.9) * number, self._crash) for _ in range(self.chosen.crashes)]
        yield from sorted(acts, key=lambda one: one[0])
        yield float("inf"), None

    def _start(self) -> None:
        self._started += 1
        name = f"soak{self._started}@localhost"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "benchmarks.soak",
            "worker",
            "-P",
            "prefork",
            "-n",
            name,
        ]
        command += ["-c", str(self.chosen.concurrency), "-l", "WARNING", "--prefetch-multiplier", "10"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.workers[name] = subprocess.Popen(
                command, env={**os.environ, "SOAK_FOLDER": str(self.folder)}, stdout=log, stderr=log
            )

    def _kill(self) -> None:
        name = self.chance.choice(sorted(self.workers))
        process = self.workers.pop(name)
        process.kill()  # its children die with it
        process.wait()
        self.died[name] = time.monotonic()
        self.report.kills += 1
        self._start()

    def _crash(self) -> None:
        """Let Postgres crash; its supervisor starts it again."""
        pid = int((self.folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        self.report.crashes += 1

    def _notes(self) -> Iterator[tuple[str, int, int, str, float]]:
        for path in (self.folder / "notes").iterdir():
            for line in path.read_bytes().splitlines():
                with suppress(ValueError):  # cut off by a kill
                    yield tuple(json.loads(line))

    def _handled(self) -> int:
        """Return about how many messages were handled: an executed task may come a second time."""
        with suppress(OperationalError), self.app.connection_for_read() as connection:
            left = connection.default_channel.queue_declare(_QUEUE, passive=True)[1]
            if left:
                return int(self.chosen.messages - left)
        return len({number for event, number, *_ in self._notes() if event == "end"})

    def _check(self) -> None:
        spans: dict[int, list[list[Any]]] = defaultdict(list)
        ended: set[int] = set()
        for event, number, message, worker, at in sorted(self._notes(), key=lambda note: note[4]):
            if event == "begin":
                spans[message].append([worker, at, float("inf")])
                self.report.executions += 1
            else:
                ended.add(number)
                open_ones = [span for span in spans[message] if span[0] == worker and span[2] == float("inf")]
                open_ones[-1][2] = at
        self.report.missing = set(range(self.chosen.messages)) - ended
        for message, found in spans.items():
            for earlier, later in pairwise(found):
                until = min(earlier[2], self.died.get(earlier[0], float("inf")))
                if until > later[1]:
                    self.report.overlaps.append(f"message {message}: {earlier} and {later}")

    def close(self) -> None:
        """Stop what was started."""
        for process in self.workers.values():
            process.kill()
        for process in self.workers.values():
            process.wait()
        self.app.close()
        release_server(self.folder / "postgres")


def main() -> int:
    """Do it, and return 1 if anything was lost or doubled."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=2, help="children of each worker")
    parser.add_argument("--kills", type=int, default=30, help="workers SIGKILLed at random moments")
    parser.add_argument("--crashes", type=int, default=2, help="crashes of Postgres at random moments")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds after which to give up")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    with temporary_directory() as folder:
        soak = Soak(folder, chosen)
        try:
            report = soak.run()
        finally:
            soak.close()
    print(report)
    for overlap in report.overlaps[:20]:
        print(overlap)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
