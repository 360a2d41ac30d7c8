"""What is in a video file."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media import ffmpeg
from example_project.media.errors import MediaError

_STREAM = re.compile(r"^\s+Stream #0:\d+\S*: (Video|Audio): (.*)$", re.MULTILINE)
_CLOCK = r"(\d+):(\d\d):(\d\d(?:\.\d+)?)"
_DURATION = re.compile(rf"^\s+Duration: {_CLOCK}", re.MULTILINE)
_POSITION = re.compile(rf"time={_CLOCK}")
_SIZE = re.compile(r"\b(\d{2,5})x(\d{2,5})\b")
_RATE = re.compile(r"([\d.]+)(k?) (?:fps|tbr)")
_ROTATION = re.compile(r"rotation of (-?\d+)")


@dataclass(frozen=True)
class MediaInfo:
    """A video as a viewer sees it; `duration` in seconds, sizes in pixels after rotation."""

    duration: float
    width: int
    height: int
    fps: float
    video_codec: str
    audio_codec: str | None

    @property
    def has_audio(self) -> bool:
        """Whether there is anything to hear."""
        return self.audio_codec is not None


@durable.step
@recorded
def probe(path: str) -> MediaInfo:
    """Read duration, size, frame rate and codecs.

    Raises:
        MediaError: the file holds no video.
    """
    return read_info(path)


def read_info(path: str) -> MediaInfo:
    """As `probe`, for use inside other steps."""
    info = parse_description(ffmpeg.describe(path))
    return info if info.duration else replace(info, duration=_measure_duration(path))


def parse_description(description: str) -> MediaInfo:
    """Turn what `ffmpeg -i` prints into numbers; the duration is 0 if the file does not declare it.

    Args:
        description: the text ffmpeg wrote to stderr.

    Raises:
        MediaError: no video stream is described.
    """
    streams = [(kind, text) for kind, text in _STREAM.findall(description) if "(attached pic)" not in text]
    video = next((text for kind, text in streams if kind == "Video"), None)
    size = _SIZE.search(video) if video else None
    if video is None or size is None:
        raise MediaError("This is not a video: ffmpeg finds no picture in it.")
    width, height = int(size[1]), int(size[2])
    rotation = _ROTATION.search(description)  # phones film sideways and say so; ffmpeg turns it upright
    if rotation and int(rotation[1]) % 180 != 0:
        width, height = height, width
    rate = _RATE.search(video)
    audio = next((text for kind, text in streams if kind == "Audio"), None)
    duration = _DURATION.search(description)
    return MediaInfo(
        duration=_seconds(duration) if duration else 0.0,
        width=width,
        height=height,
        fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0,
        video_codec=_codec(video),
        audio_codec=_codec(audio) if audio else None,
    )


def _measure_duration(path: str) -> float:
    """Walk through the packets of a file that does not say how long it is."""
    progress = ffmpeg.convert(path, "-map", "0:v:0", "-c", "copy", "-f", "null", "-").stderr
    positions = list(_POSITION.finditer(progress))
    if not positions:
        raise MediaError("The length of this video cannot be found.")
    return _seconds(positions[-1])


def _seconds(clock: re.Match[str]) -> float:
    return int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])


def _codec(stream: str) -> str:
    return re.split(r"[\s,]", stream, maxsplit=1)[0]
