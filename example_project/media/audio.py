"""The sound of a video: a file to listen to, and how loud it is at each moment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media import ffmpeg
from example_project.media.curve import draw_curve
from example_project.media.files import complete_file, write_text

SILENCE = -70.0  # LUFS; EBU R 128 counts nothing below it
MAX_POINTS = 600  # enough for a curve as wide as a page, however long the film
_MOMENT = re.compile(r"^lavfi\.r128\.M=(\S+)", re.MULTILINE)
_INTEGRATED = re.compile(r"^\s+I:\s+(\S+) LUFS", re.MULTILINE)
_RANGE = re.compile(r"^\s+LRA:\s+(\S+) LU", re.MULTILINE)
_SECONDS_PER_MOMENT = 0.1  # the rate at which ffmpeg's ebur128 filter reports


@dataclass(frozen=True)
class AudioFile:
    """The first sound track in stereo."""

    path: str
    size: int


@dataclass(frozen=True)
class Loudness:
    """Loudness by EBU R 128.

    `integrated` is that of the whole in LUFS, `spread` its range in LU. `curve` has the momentary
    loudness in LUFS, one value every `interval` seconds; `drawing` is the path of an SVG of it.
    """

    integrated: float
    spread: float
    interval: float
    curve: tuple[float, ...]
    drawing: str


@durable.step
@recorded
def extract_audio(path: str, folder: str) -> AudioFile:
    """Save the first sound track as `audio.m4a`."""
    target = Path(folder) / "audio.m4a"
    with complete_file(target) as partial:
        ffmpeg.convert(path, "-map", "0:a:0", "-ac", "2", "-c:a", "aac", "-b:a", "160k", str(partial))
    return AudioFile(str(target), target.stat().st_size)


@durable.step
@recorded
def measure_loudness(path: str, folder: str) -> Loudness:
    """Measure a sound file and draw `loudness.svg`."""
    meter = "ebur128=metadata=1,ametadata=mode=print:key=lavfi.r128.M:file=-"
    printed = ffmpeg.convert(path, "-map", "0:a:0", "-af", meter, "-f", "null", "-")
    moments = parse_moments(printed.stdout)
    curve, interval = thin_out(moments, _SECONDS_PER_MOMENT, MAX_POINTS)
    drawing = Path(folder) / "loudness.svg"
    write_text(drawing, draw_curve(curve, interval))
    return Loudness(
        integrated=_last_number(_INTEGRATED, printed.stderr),
        spread=_last_number(_RANGE, printed.stderr, default=0.0),
        interval=interval,
        curve=curve,
        drawing=str(drawing),
    )


def parse_moments(printed: str) -> list[float]:
    """The momentary loudness values in what the filter printed, in LUFS and never below silence."""
    return [_audible(value) for value in _MOMENT.findall(printed)]


def thin_out(values: list[float], interval: float, limit: int) -> tuple[tuple[float, ...], float]:
    """Keep at most `limit` values, each the loudest of its neighbours, and say how far apart they are.

    Args:
        values: one measurement every `interval` seconds.
        interval: distance of two values in seconds.
        limit: how many values to keep.
    """
    group = max(1, -(-len(values) // limit))
    kept = tuple(max(values[start : start + group]) for start in range(0, len(values), group))
    return kept, round(interval * group, 3)


def _last_number(pattern: re.Pattern[str], text: str, default: float = SILENCE) -> float:
    found = pattern.findall(text)
    return _audible(found[-1]) if found else default


def _audible(text: str) -> float:
    """Silence is printed as a very small number, `-inf` or `nan`; `max` prefers its first to a `nan`."""
    return max(SILENCE, float(text))
