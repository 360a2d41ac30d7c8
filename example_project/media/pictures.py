"""Still pictures out of a video."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media import ffmpeg
from example_project.media.files import complete_file

WIDTH = 320  # pixels of a thumbnail
SHORTEST_INTERVAL = 1.0  # seconds between two thumbnails
MOST_THUMBNAILS = 12


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of the moment `at`, in seconds from the start."""

    path: str
    at: float


@dataclass(frozen=True)
class ContactSheet:
    """All thumbnails on one page."""

    path: str
    columns: int
    rows: int


def thumbnail_times(duration: float) -> list[float]:
    """The moments worth a thumbnail: one a second, further apart in a long video.

    Each is in the middle of its interval: the very first frame is often black, and after the very
    last one there is nothing to see.

    Args:
        duration: length of the video in seconds.
    """
    count = min(MOST_THUMBNAILS, max(1, int(duration / SHORTEST_INTERVAL)))
    return [round(duration * (number + 0.5) / count, 2) for number in range(count)]


@durable.step
@recorded
def thumbnail(path: str, folder: str, number: int, at: float) -> Thumbnail:
    """Save the picture shown at one moment.

    Args:
        path: the video.
        folder: where `thumbnail-<number>.jpg` goes.
        number: which thumbnail it is, from 1.
        at: seconds from the start.
    """
    target = Path(folder) / f"thumbnail-{number:02d}.jpg"
    with complete_file(target) as partial:
        ffmpeg.convert(
            path, "-map", "0:v:0", "-frames:v", "1", "-update", "1",
            "-vf", f"scale={WIDTH}:-2", "-q:v", "3", str(partial),
            seek=at,
        )  # fmt: skip
    return Thumbnail(str(target), at)


@durable.step
@recorded
def contact_sheet(pictures: list[str], folder: str) -> ContactSheet:
    """Arrange pictures of one size in a grid, as `contact-sheet.jpg`.

    Args:
        pictures: paths, first one top left.
        folder: where the sheet goes.
    """
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    inputs = [argument for picture in pictures for argument in ("-i", picture)]
    streams = "".join(f"[{index}]" for index in range(len(pictures)))
    grid = f"{streams}concat=n={len(pictures)}:v=1,tile={columns}x{rows}:padding=8:margin=8:color=0x15181d"
    target = Path(folder) / "contact-sheet.jpg"
    with complete_file(target) as partial:
        ffmpeg.run(
            *inputs, "-filter_complex", grid, "-frames:v", "1", "-update", "1", "-q:v", "3", str(partial)
        )
    return ContactSheet(str(target), columns, rows)
