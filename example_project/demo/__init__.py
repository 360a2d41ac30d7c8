"""Kill a worker in the middle of a video, watch another finish it: `python -m example_project.demo`."""

from __future__ import annotations
