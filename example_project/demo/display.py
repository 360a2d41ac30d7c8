"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from example_project.demo.evidence import StepHistory, histories

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from example_project.ledger import Entry


class Display:
    """Tells the story of one run as it happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown = 0  # ledger entries that have been printed as lines
        self._live: Live | None = None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Keep a table of steps up to date below the text, where there is a terminal for it."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8, transient=True) as self._live:
            yield
        self._live = None

    def say(self, text: str, style: str = "") -> None:
        """Print one line of the story, with the seconds since it began."""
        elapsed = time.monotonic() - self._began
        self._console.print(Text.assemble((f"{elapsed:5.1f} s  ", "dim"), (text, style)), soft_wrap=True)

    def show(self, entries: Sequence[Entry]) -> None:
        """Show how far the run is."""
        if self._live is not None:
            self._live.update(steps_table(histories(entries)))
            return
        for entry in entries[self._shown :]:
            self.say(f"{_short(entry.worker)}: {entry.event} {entry.step}")
        self._shown = len(entries)

    def conclude(self, *parts: Table | Text) -> None:
        """Print the final tables, a blank line before each."""
        for part in parts:
            self._console.print()
            self._console.print(part, soft_wrap=isinstance(part, Text))


def steps_table(steps: Sequence[StepHistory]) -> Table:
    """Which step ran on which worker and how many times its body was started."""
    table = Table(title="Executions, as the steps themselves recorded them", title_justify="left")
    table.add_column("step")
    table.add_column("started on")
    table.add_column("finished on")
    table.add_column("seconds", justify="right")
    table.add_column("starts", justify="right")
    for history in steps:
        repeated = len(history.started) > 1
        table.add_row(
            history.step,
            ", ".join(_short(worker) for worker in history.started),
            ", ".join(_short(worker) for worker in history.finished) or "…",
            f"{history.seconds(time.time()):.2f}",
            str(len(history.started)),
            style="bold yellow" if repeated else "" if history.finished else "cyan",
        )
    return table


def result_lines(result: dict[str, Any]) -> Text:
    """What the task returned, a line for each entry."""
    width = max(map(len, result))
    lines = [
        f"  {name:{width}}  {len(value)} files" if isinstance(value, list) else f"  {name:{width}}  {value}"
        for name, value in result.items()
    ]
    return Text("\n".join(["The task returned", *lines]))


def files_table(files: dict[str, int]) -> Table:
    """The run's output: names and sizes in bytes."""
    table = Table(title="Files in the run's folder", title_justify="left")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    return table


def _short(worker: str) -> str:
    return worker.partition("@")[0]
