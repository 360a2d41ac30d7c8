"""The page that shows what was made of a video."""

from __future__ import annotations

import base64
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

import celery_durable as durable
from example_project.ledger import recorded
from example_project.media.files import write_text

if TYPE_CHECKING:
    from example_project.media.audio import AudioFile, Loudness
    from example_project.media.pictures import ContactSheet, Thumbnail
    from example_project.media.probe import MediaInfo
    from example_project.media.source import SourceFile
    from example_project.media.transcode import SmallVideo

LARGEST_EMBEDDED = 8 * 1024**2  # bytes; larger files are linked, so that the page still opens at once


@dataclass(frozen=True)
class Report:
    """An HTML page that needs no other file, unless the video is long."""

    path: str
    size: int


@durable.step
@recorded
def write_report(
    folder: str,
    *,
    source: SourceFile,
    info: MediaInfo,
    audio: AudioFile | None,
    loudness: Loudness | None,
    thumbnails: list[Thumbnail],
    small: SmallVideo,
    sheet: ContactSheet,
) -> Report:
    """Write `report.html` from what the other steps returned."""
    target = Path(folder) / "report.html"
    page = (
        _templates()
        .get_template("report.html")
        .render(
            name=Path(source.origin).name or source.origin,
            source=source,
            info=info,
            audio=audio,
            loudness=loudness,
            # Our own drawing: the one value that is markup and not text.
            curve=Markup(Path(loudness.drawing).read_text("utf-8")) if loudness else None,  # noqa: S704
            thumbnails=thumbnails,
            small=small,
            sheet=sheet,
        )
    )
    write_text(target, page)
    return Report(str(target), target.stat().st_size)


def embed(path: str) -> str:
    """A URL that holds the file itself, or its name in the same folder if the file is large."""
    file = Path(path)
    if file.stat().st_size > LARGEST_EMBEDDED:
        return file.name
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def clock(seconds: float) -> str:
    """Seconds as a player shows them, `1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _templates() -> Environment:
    templates = Environment(loader=PackageLoader("example_project.media"), autoescape=select_autoescape())
    templates.filters["embed"] = embed
    templates.filters["clock"] = clock
    return templates
