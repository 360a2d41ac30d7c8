"""Run the benchmarks and print a table of ratios.

Examples:
  python -m benchmarks                          all of them, about ten minutes
  python -m benchmarks --quick                  fewer samples and no million rows, under two minutes
  python -m benchmarks --only step resume       some of them
  python -m benchmarks --postgres postgresql://postgres@127.0.0.1/postgres --json figures.json
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from rich.console import Console

from benchmarks.cases import CASES
from benchmarks.measuring import timed
from benchmarks.report import as_json, as_markdown, facts, show
from benchmarks.setting import Setting, Skipped, postgres_server, redis_server, temporary_directory

if TYPE_CHECKING:
    from benchmarks.report import Row


def _arguments() -> argparse.Namespace:
    summary, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CASES), help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="fewer samples, no million rows")
    parser.add_argument(
        "--postgres", metavar="URL", help="a server (default: $DURABLE_TEST_POSTGRES, or an embedded one)"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="default: $DURABLE_TEST_REDIS, or redis://127.0.0.1:6379/15"
    )
    parser.add_argument(
        "--hold",
        metavar="SECONDS",
        type=float,
        help="how long a transaction is held open: 60, or 10 if quick",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the tables to a file, too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to a file, too")
    return parser.parse_args()


def _run(name: str, setting: Setting, console: Console) -> list[Row]:
    rows: list[Row] = []
    try:
        seconds = timed(lambda: rows.extend(CASES[name](setting)))
    except Skipped as reason:
        console.print(f"[bold]{name}[/] left out: {reason}\n")
        return []
    finally:
        setting.close()
    show(f"{name} ({seconds:.0f} s)", rows, console.print)
    console.print()
    return rows


def _told(facts_known: dict[str, str]) -> str:
    return ", ".join(f"{fact} {value}" for fact, value in facts_known.items())


def main() -> None:
    """Run what is asked for."""
    chosen = _arguments()
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    console = Console(width=None if Console().is_terminal else 180)
    with postgres_server(chosen.postgres) as postgres, temporary_directory() as directory:
        with psycopg.connect(postgres, autocommit=True) as connection:
            known = facts(connection)
        console.print(_told(known), highlight=False)
        console.print()
        results: dict[str, list[Row]] = {}
        for name in chosen.only or CASES:
            setting = Setting(
                postgres=postgres,
                redis=redis_server(chosen.redis),
                quick=chosen.quick,
                directory=directory,
                say=console.print,
                hold=chosen.hold or (10.0 if chosen.quick else 60.0),
            )
            results[name] = _run(name, setting, console)
        if chosen.markdown:
            tables = [as_markdown(name, rows) for name, rows in results.items()]
            chosen.markdown.write_text(_told(known) + "\n\n" + "\n".join(tables))
        if chosen.json:
            figures = {name: as_json(rows) for name, rows in results.items()}
            chosen.json.write_text(json.dumps({"facts": known, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
