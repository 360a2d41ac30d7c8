"""The pure parts of the example's steps: reading what ffmpeg prints, choosing, drawing."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import checkout  # noqa: F401  (makes example_project importable)
import pytest

from example_project.media.audio import SILENCE, parse_moments, thin_out
from example_project.media.curve import draw_curve
from example_project.media.errors import MediaError
from example_project.media.pictures import MOST_THUMBNAILS, thumbnail_times
from example_project.media.probe import parse_description
from example_project.media.report import clock
from example_project.media.transcode import preset_for

FILM = """\
Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'film.mp4':
  Duration: 00:00:05.31, start: 0.000000, bitrate: 1589 kb/s
  Stream #0:0[0x1](und): Video: h264 (Main) (avc1 / 0x31637661), yuv420p, 1280x720 [SAR 1:1], 25 fps, 25 tbr
  Stream #0:1[0x2](und): Audio: aac (LC) (mp4a / 0x6134706D), 48000 Hz, 5.1, fltp, 384 kb/s (default)
"""
PHONE = """\
  Stream #0:0: Video: hevc (Main), yuv420p(tv), 1920x1080, 8000 kb/s, 29.97 fps, 30 tbr, 600 tbn
    Side data:
      displaymatrix: rotation of -90.00 degrees
"""
SONG_WITH_COVER = """\
  Stream #0:0: Audio: mp3 (mp3float), 44100 Hz, stereo, fltp, 320 kb/s
  Stream #0:1: Video: mjpeg (Baseline), yuvj444p(pc), 600x600, 90k tbr, 90k tbn (attached pic)
"""


def test_size_rate_and_codecs_are_read_from_what_ffmpeg_prints() -> None:
    info = parse_description(FILM)

    assert (info.duration, info.width, info.height, info.fps) == (5.31, 1280, 720, 25.0)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")


def test_a_video_without_sound_has_no_audio_codec() -> None:
    silent = FILM.replace("Audio:", "Data:")

    assert parse_description(silent).has_audio is False


def test_a_film_made_on_a_phone_is_as_high_as_it_is_seen() -> None:
    info = parse_description(PHONE)

    assert (info.width, info.height, info.fps) == (1080, 1920, 29.97)


@pytest.mark.parametrize(
    "description", [SONG_WITH_COVER, "text.txt: Invalid data found when processing input"]
)
def test_what_has_no_moving_picture_is_not_a_video(description: str) -> None:
    with pytest.raises(MediaError, match="not a video"):
        parse_description(description)


@pytest.mark.parametrize("printed", ["-inf", "nan", "-120.691"])
def test_silence_is_one_number_however_it_is_printed(printed: str) -> None:
    assert parse_moments(f"frame:0\nlavfi.r128.M={printed}\nlavfi.r128.M=-20.5\n") == [SILENCE, -20.5]


def test_a_long_curve_keeps_its_peaks() -> None:
    kept, interval = thin_out([-30.0, -10.0, -30.0, -30.0, -20.0], interval=0.1, limit=3)

    assert kept == (-10.0, -30.0, -20.0)
    assert interval == 0.2


def test_a_short_curve_is_kept_as_it_is() -> None:
    assert thin_out([-30.0, -10.0], interval=0.1, limit=600) == ((-30.0, -10.0), 0.1)


@pytest.mark.parametrize(("duration", "count"), [(0.2, 1), (5.31, 5), (7200.0, MOST_THUMBNAILS)])
def test_every_thumbnail_lies_inside_the_video(duration: float, count: int) -> None:
    times = thumbnail_times(duration)

    assert len(times) == count
    assert times == sorted(times)
    assert 0 < times[0] <= times[-1] < duration


@pytest.mark.parametrize("curve", [(), (-20.0,), (-20.0, -70.0, 3.0)])
def test_any_curve_is_drawn_inside_its_picture(curve: tuple[float, ...]) -> None:
    drawing = ET.fromstring(draw_curve(curve, interval=0.1))

    line = next(element for element in drawing if element.get("class") == "line")
    heights = [float(point.partition(",")[2]) for point in line.get("points", "").split()]
    assert len(heights) == (max(len(curve), 2) if curve else 0)
    assert all(12 <= height <= 176 for height in heights)


def test_only_a_short_clip_gets_the_slow_encoder() -> None:
    assert preset_for(5.31) != preset_for(3600.0)


@pytest.mark.parametrize(("seconds", "shown"), [(5.31, "0:05"), (125.0, "2:05"), (3723.9, "1:02:03")])
def test_lengths_are_shown_as_a_player_shows_them(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown
