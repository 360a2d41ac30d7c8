"""A smaller version of the video that plays everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media import ffmpeg
from example_project.media.files import complete_file
from example_project.media.probe import read_info

HEIGHT = 480  # pixels; a smaller video keeps its size
THREADS = 2  # a worker has a process per core already
SHORT = 60.0  # seconds


@dataclass(frozen=True)
class SmallVideo:
    """An H.264/AAC video of at most 480 lines; `size` in bytes."""

    path: str
    width: int
    height: int
    size: int


@durable.step
@recorded
def transcode(path: str, folder: str, duration: float) -> SmallVideo:
    """Encode `video-480p.mp4`, the expensive step.

    Args:
        path: the video.
        folder: where the result goes.
        duration: length of the video in seconds.
    """
    target = Path(folder) / "video-480p.mp4"
    with complete_file(target) as partial:
        ffmpeg.convert(
            path, "-map", "0:v:0", "-map", "0:a:0?",
            "-vf", f"scale=-2:'trunc(min({HEIGHT},ih)/2)*2'", "-threads", str(THREADS),
            "-c:v", "libx264", "-preset", preset_for(duration), "-crf", "23", "-pix_fmt", "yuv420p",
            "-c:a", "aac", "-ac", "2", "-b:a", "128k", "-movflags", "+faststart", str(partial),
        )  # fmt: skip
    info = read_info(str(target))
    return SmallVideo(str(target), info.width, info.height, target.stat().st_size)


def preset_for(duration: float) -> str:
    """How hard the encoder tries: slow presets make smaller files, and a clip is soon done anyway."""
    return "veryslow" if duration <= SHORT else "medium"
