"""Parts of a chord: what one costs beside a plain INSERT, and whether many are as cheap as few.

Eight processes return the parts of one chord as fast as they can. The base is as many plain INSERTs by them:
parts that waited for a common counter, or counted each other, would fall behind as their number grows.
"""

from __future__ import annotations

import multiprocessing
import uuid
from typing import TYPE_CHECKING

from benchmarks import table
from benchmarks.measuring import Spread, ratio, timed
from benchmarks.report import Row
from celery_durable.config import Settings
from celery_durable.store import Store
from celery_durable.store.writes import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.setting import Setting

_PROCESSES = 8


def run(setting: Setting) -> Iterable[Row]:
    """Measure parts of short and long chords in turn with INSERTs."""
    store = setting.store("chords")
    with store.connections.dedicated() as connection:
        table.create(connection)
    for size in (1000, setting.rounds(10_000, 4000)):
        parts: list[float] = []
        inserts: list[float] = []
        for _ in range(setting.rounds(5, 2)):
            inserts.append(_together(_insert, store.url, "", size))
            chord = str(uuid.uuid4())
            store.chords.expect(chord, b"{}", None, "application/json")
            store.chords.resize(chord, size, uuid.uuid4())
            parts.append(_together(_return, store.url, chord, size))
        base = f"INSERT, {size:,} by {_PROCESSES} processes"
        yield Row(base, Spread.of(one / size for one in inserts).times(1e6), "µs", None, "")
        yield Row(
            f"part of a chord of {size:,}",
            Spread.of(one / size for one in parts).times(1e6),
            "µs",
            ratio(parts, inserts),
            base,
        )


def _together(work: Callable[[str, str, range], None], url: str, chord: str, size: int) -> float:
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(_PROCESSES + 1)

    def one(numbers: range) -> None:
        ready.wait()
        work(url, chord, numbers)

    processes = [
        fork.Process(target=one, args=(range(start, size, _PROCESSES),)) for start in range(_PROCESSES)
    ]
    for process in processes:
        process.start()
    ready.wait()

    def joined() -> None:
        for process in processes:
            process.join()

    return timed(joined)


def _return(url: str, chord: str, numbers: range) -> None:
    store = Store(url, Settings())
    for number in numbers:
        look = store.chords.part(
            Part(chord, f"{chord}-{number}", number, "SUCCESS", b"1", "application/json"), uuid.uuid4()
        )
        store.chords.add_up(chord, look)
    store.connections.close()


def _insert(url: str, _: str, numbers: range) -> None:
    store = Store(url, Settings())
    with store.connections.dedicated() as connection:
        for number in numbers:
            table.insert(connection, number)
