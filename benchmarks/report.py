"""Results as a table, and as JSON; and what they were measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psycopg

    from benchmarks.measuring import Spread

_PACKAGES = (
    "celery-durable",
    "celery",
    "kombu",
    "psycopg",
    "psycopg-binary",
    "SQLAlchemy",
    "redis",
    "dbos",
    "absurd-sdk",
    "procrastinate",
    "pgmq",
)
_POSTGRES_SETTINGS = ("fsync", "synchronous_commit", "wal_sync_method", "shared_buffers", "full_page_writes")


@dataclass(frozen=True)
class Target:
    """What DESIGN.md asks of a ratio or of a figure."""

    at_most: float | None = None
    at_least: float | None = None
    of: str = "ratio"

    def met(self, value: float) -> bool:
        """Whether `value` is good enough."""
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is not None and value >= self.at_least

    def __str__(self) -> str:
        unit = " x" if self.of == "ratio" else ""
        return f"≤ {self.at_most:g}{unit}" if self.at_most is not None else f"≥ {self.at_least:g}{unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        figure: how much it was, in `unit`.
        unit: `µs`, `ms`, `steps/s` and the like.
        ratio: how many times the other side that is; None for the other side itself.
        against: what the ratio is to.
        target: what the ratio (or the figure) should be.
    """

    what: str
    figure: Spread | None
    unit: str
    ratio: Spread | None = None
    against: str = ""
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None when there is none."""
        measured = self.ratio if self.target is not None and self.target.of == "ratio" else self.figure
        return None if self.target is None or measured is None else self.target.met(measured.median)


_COLUMNS = ("measured", "median", "quartiles", "unit", "ratio", "to", "target", "")


def _cells(row: Row) -> list[str]:
    verdict = "" if row.met is None else "met" if row.met else "missed"
    ratio = f"{row.ratio.median:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})" if row.ratio else ""
    median = _number(row.figure.median) if row.figure else ""
    return [
        row.what,
        median,
        _quartiles(row.figure),
        row.unit,
        ratio,
        row.against,
        str(row.target or ""),
        verdict,
    ]


def as_markdown(name: str, rows: Iterable[Row]) -> str:
    """Return one case's rows as a table for the documentation."""
    lines = [list(_COLUMNS), ["---"] * len(_COLUMNS), *(_cells(row) for row in rows)]
    return f"### {name}\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def show(name: str, rows: Iterable[Row], printed: Callable[[Any], None]) -> None:
    """Print one case's rows."""
    table = Table(title=name, title_justify="left", title_style="bold")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in {"median", "quartiles", "ratio"} else "left")
    for row in rows:
        table.add_row(*_cells(row), style="red" if row.met is False else None)
    printed(table)


def _quartiles(figure: Spread | None) -> str:
    if figure is None or figure.low == figure.high:
        return ""
    return f"{_number(figure.low)} to {_number(figure.high)}"


def _number(value: float) -> str:
    whole = 100
    return f"{value:,.0f}" if value >= whole else f"{value:.3g}"


def facts(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return what the figures were measured on and with."""
    known = {
        "date": str(_one(connection, "select current_date")),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "Postgres": str(_one(connection, "show server_version")),
    }
    for setting in _POSTGRES_SETTINGS:
        known[setting] = str(_one(connection, f"show {setting}"))
    for package in _PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "not installed"
    return known


def _one(connection: psycopg.Connection[Any], sql: str) -> Any:
    row = connection.execute(sql.encode()).fetchone()
    return row[0] if row else None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123  (no path of ours)
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return rows as JSON can hold them."""
    return [
        {**asdict(row), "target": str(row.target) if row.target else None, "met": row.met} for row in rows
    ]
