"""Running the ffmpeg binary that the wheel imageio-ffmpeg brings."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

import imageio_ffmpeg

from example_project.media.errors import MediaError

if TYPE_CHECKING:
    from pathlib import Path

TIME_LIMIT = 3600.0  # seconds for one call; a decoder stuck on a damaged file must not hold a worker


class Output(NamedTuple):
    """What ffmpeg printed."""

    stdout: str
    stderr: str


def convert(source: str | Path, *arguments: str, seek: float = 0.0) -> Output:
    """Run `ffmpeg -i source arguments…`.

    Args:
        source: the input file.
        arguments: everything that follows the input, with the output path last.
        seek: where to start reading, in seconds.

    Raises:
        MediaError: ffmpeg failed; the message is the last thing it said.
    """
    return run("-ss", f"{seek:.3f}", "-i", str(source), *arguments)


def run(*arguments: str) -> Output:
    """Run ffmpeg with exactly these arguments, overwriting its output.

    Raises:
        MediaError: ffmpeg failed or took longer than `TIME_LIMIT`.
    """
    finished = _execute(*arguments)
    if finished.returncode != 0:
        raise MediaError(f"ffmpeg could not do it: {_last_words(finished.stderr)}")
    return Output(finished.stdout, finished.stderr)


def describe(source: str | Path) -> str:
    """What ffmpeg says about a file's streams; the wheel has no ffprobe."""
    return _execute("-i", str(source)).stderr  # fails by design: there is no output


def _execute(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-y", *arguments]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise MediaError(f"ffmpeg was still busy after {TIME_LIMIT:.0f} s.") from error


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
