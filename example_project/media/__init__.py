"""The steps of the media app: plain functions around ffmpeg, each one a checkpoint inside a run."""

from __future__ import annotations
