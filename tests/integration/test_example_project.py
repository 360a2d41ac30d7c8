"""The example's steps on real videos, and its demo as a reader runs it."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from checkout import CLIP, ROOT

from example_project.media import ffmpeg, source
from example_project.media.audio import extract_audio, measure_loudness
from example_project.media.errors import DownloadInterruptedError, MediaError
from example_project.media.files import complete_file
from example_project.media.pictures import contact_sheet, thumbnail
from example_project.media.probe import MediaInfo, probe, read_info
from example_project.media.report import write_report
from example_project.media.source import fetch
from example_project.media.transcode import transcode

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO_LIMIT = 170.0  # seconds on a busy machine; it takes a fifth of that on an idle one


class Answer(BaseHTTPRequestHandler):
    """Answers with the status that the path asks for, or with half of what it promised."""

    def do_GET(self) -> None:
        if self.path == "/half.mp4":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            return
        self.send_response(int(self.path.strip("/")))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Files(SimpleHTTPRequestHandler):
    """Serves the bundled clip."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(params=[Answer])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A run's folder; its name has what breaks careless commands."""
    return str(tmp_path / "it's 100% a: run")


@pytest.fixture
def silent_film(tmp_path: Path) -> str:
    """Less than a second, an odd number of pixels, no sound."""
    path = tmp_path / "silent.mkv"
    ffmpeg.run("-f", "lavfi", "-i", "testsrc=size=321x241:duration=0.6:rate=10", "-c:v", "ffv1", str(path))
    return str(path)


def names_in(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_clip_becomes_pictures_sound_and_a_smaller_video(folder: str) -> None:
    video = fetch(str(CLIP), folder)
    info = probe(video.path)
    audio = extract_audio(video.path, folder)
    loudness = measure_loudness(audio.path, folder)
    pictures = [thumbnail(video.path, folder, number, at) for number, at in enumerate((0.5, 2.6, 4.8), 1)]
    small = transcode(video.path, folder, 120.0)
    sheet = contact_sheet([picture.path for picture in pictures], folder)
    report = write_report(
        folder,
        source=video,
        info=info,
        audio=audio,
        loudness=loudness,
        thumbnails=pictures,
        small=small,
        sheet=sheet,
    )

    assert info == MediaInfo(5.31, 1280, 720, 25.0, "h264", "aac")
    assert (small.width, small.height) == (854, 480)
    assert read_info(small.path).has_audio
    assert -40 < loudness.integrated < -28
    assert len(loudness.curve) == pytest.approx(5.31 / loudness.interval, abs=2)
    assert read_info(pictures[0].path).width == 320
    assert (sheet.columns, sheet.rows) == (2, 2)
    page = Path(report.path).read_text("utf-8")
    assert page.count("data:image/jpeg") == 5
    assert "<svg" in page
    assert not any(name.startswith(".") for name in names_in(folder))


def test_a_video_without_sound_is_processed_too(folder: str, silent_film: str) -> None:
    video = fetch(silent_film, folder)
    info = probe(video.path)
    pictures = [thumbnail(video.path, folder, 1, 0.3)]
    small = transcode(video.path, folder, info.duration)
    sheet = contact_sheet([picture.path for picture in pictures], folder)
    report = write_report(
        folder,
        source=video,
        info=info,
        audio=None,
        loudness=None,
        thumbnails=pictures,
        small=small,
        sheet=sheet,
    )

    assert (info.has_audio, info.duration) == (False, 0.6)
    assert (small.width, small.height) == (320, 240)
    assert "no sound" in Path(report.path).read_text("utf-8")


def test_the_length_of_a_video_that_does_not_say_it_is_measured(tmp_path: Path) -> None:
    stream = tmp_path / "stream.webm"
    written = ffmpeg.run(
        "-f", "lavfi", "-i", "testsrc=size=160x90:duration=2:rate=25",
        "-c:v", "libvpx", "-live", "1", "-f", "webm", str(stream),
    )  # fmt: skip

    assert "Duration: N/A" in ffmpeg.describe(stream), written.stderr
    assert read_info(str(stream)).duration == pytest.approx(2.0, abs=0.1)


def test_a_file_that_is_no_video_ends_with_a_clear_error(folder: str, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a film")

    with pytest.raises(MediaError, match="not a video"):
        probe(fetch(str(text), folder).path)


@pytest.mark.parametrize("missing", ["/no/such/film.mp4", "ftp://example.com/film.mp4", "file:///etc/passwd"])
def test_what_cannot_be_fetched_leaves_nothing_behind(folder: str, missing: str) -> None:
    with pytest.raises(MediaError):
        fetch(missing, folder)

    assert names_in(folder) == []


def test_a_video_that_is_too_large_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 1000)

    with pytest.raises(MediaError, match="larger than 1,000 bytes"):
        fetch(str(CLIP), folder)

    assert names_in(folder) == []


@pytest.mark.parametrize("server", [functools.partial(Files, directory=CLIP.parent)], indirect=True)
def test_a_url_is_downloaded_whole(server: str, folder: str) -> None:
    video = fetch(f"{server}/bigbuckbunny.mp4?session=1", folder)

    assert video.path.endswith("source.mp4")
    assert video.size == CLIP.stat().st_size


def test_only_an_error_that_may_pass_is_worth_another_try(server: str, folder: str) -> None:
    with pytest.raises(MediaError, match="404"):
        fetch(f"{server}/404", folder)
    for path in ("503", "429"):
        with pytest.raises(DownloadInterruptedError, match=path):
            fetch(f"{server}/{path}", folder)


def test_half_a_download_is_no_file(server: str, folder: str) -> None:
    with pytest.raises(DownloadInterruptedError):
        fetch(f"{server}/half.mp4", folder)

    assert names_in(folder) == []


def test_what_a_killed_worker_left_half_written_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "film.mp4"
    half_written = tmp_path / ".film.0123.part.mp4"
    half_written.write_text("half")

    with complete_file(target) as partial:
        partial.write_text("whole")

    assert names_in(tmp_path) == ["film.mp4"]
    assert target.read_text() == "whole"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder in which only the example can be imported: the demo's workers look beside it."""
    (tmp_path / "example_project").symlink_to(ROOT / "example_project")
    return tmp_path


def start_demo(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "example_project.demo", *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def demo_processes(project: Path) -> list[str]:
    """Everything that runs for this demo: workers, Postgres, ffmpeg."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "pid"]):
        place = [process.info["cwd"] or "", *(process.info["cmdline"] or [])]
        if process.pid != os.getpid() and any(str(project) in part for part in place):
            found.append(" ".join(place))
    return found


def test_the_demo_proves_that_no_finished_step_ran_again_and_leaves_nothing_running(project: Path) -> None:
    demo = start_demo(project)

    output, _ = demo.communicate(timeout=DEMO_LIMIT)

    assert demo.returncode == 0, output
    assert "SIGKILL to worker" in output
    assert "Proved: 11 steps ran exactly once, transcode was interrupted and ran again." in output
    assert demo_processes(project) == []
    assert not (project / "demo-output" / "durable").exists()


def test_a_demo_interrupted_in_the_middle_leaves_nothing_running(project: Path) -> None:
    demo = start_demo(project)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "SIGKILL to worker" in line:
            break
    demo.send_signal(signal.SIGINT)

    output, _ = demo.communicate(timeout=DEMO_LIMIT)

    assert demo.returncode == 130, output
    assert demo_processes(project) == []


def test_a_demo_with_a_source_that_does_not_exist_says_so(project: Path) -> None:
    demo = start_demo(project, "/no/such/film.mp4")

    output, _ = demo.communicate(timeout=DEMO_LIMIT)

    assert demo.returncode == 1
    assert "Cannot read /no/such/film.mp4" in output
    assert demo_processes(project) == []


def test_a_folder_that_is_not_the_demos_is_not_emptied(project: Path) -> None:
    precious = project / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()

    demo = start_demo(project, "--folder", str(precious))
    output, _ = demo.communicate(timeout=DEMO_LIMIT)

    assert demo.returncode == 1
    assert "not from this demo" in output
    assert names_in(precious) == ["thesis.txt"]
