"""The one task of the app. Read it as the plain function it is: that is how a run behaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from example_project.app import app
from example_project.media.audio import extract_audio, measure_loudness
from example_project.media.errors import DownloadInterruptedError, MediaError
from example_project.media.pictures import contact_sheet, thumbnail, thumbnail_times
from example_project.media.probe import probe
from example_project.media.report import write_report
from example_project.media.source import fetch
from example_project.media.transcode import transcode

if TYPE_CHECKING:
    from celery import Task


# `throws` ends the run at once: a MediaError is about the video and would come back at every try, and
# a download was tried often enough by its step. Anything else (a full disk, a lost connection) is
# retried by DurableTask, from the last checkpoint.
@app.task(bind=True, name="media.process_video", throws=(MediaError, DownloadInterruptedError))
def process_video(self: Task[Any, Any], source: str) -> dict[str, Any]:
    """Make thumbnails, a contact sheet, a 480p version, a loudness curve and a report of one video.

    `source` is the path of a file that every worker can read, or an http(s) URL.
    """
    folder = str(output_folder() / (self.request.id or "called-directly"))
    video = fetch(source, folder)
    info = probe(video.path)
    audio = extract_audio(video.path, folder) if info.has_audio else None
    loudness = measure_loudness(audio.path, folder) if audio else None
    thumbnails = [
        thumbnail(video.path, folder, number, at)
        for number, at in enumerate(thumbnail_times(info.duration), start=1)
    ]
    small = transcode(video.path, folder, info.duration)
    sheet = contact_sheet([picture.path for picture in thumbnails], folder)
    report = write_report(
        folder,
        source=video,
        info=info,
        audio=audio,
        loudness=loudness,
        thumbnails=thumbnails,
        small=small,
        sheet=sheet,
    )
    return {
        "report": report.path,
        "video": small.path,
        "contact_sheet": sheet.path,
        "audio": audio.path if audio else None,
        "loudness_lufs": loudness.integrated if loudness else None,
        "thumbnails": [picture.path for picture in thumbnails],
        "duration": info.duration,
    }


def output_folder() -> Path:
    """Where runs write; one place that all workers share."""
    return Path(os.environ.get("MEDIA_OUTPUT_DIR", "media-output")).resolve()
