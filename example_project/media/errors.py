"""What can be wrong with a video."""

from __future__ import annotations


class MediaError(Exception):
    """The video cannot be processed, and trying again would not change that."""


class DownloadInterruptedError(Exception):
    """The server or the network failed; the next try may succeed."""
