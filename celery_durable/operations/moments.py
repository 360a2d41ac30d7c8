"""Moments as people type them: `10m` ago, or ISO 8601."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_AGO = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)$")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 100 * 366 * 86_400  # seconds


def parse_moment(text: str) -> datetime | timedelta:
    """Return a length of time before now (`90s`, `10m`, `2h`, `3d`, `1w`), or a moment in ISO 8601.

    A moment without a zone is in the local one. Raises `ValueError` for anything else.
    """
    text = text.strip()
    if match := _AGO.match(text):
        return timedelta(seconds=min(float(match[1]) * _SECONDS[match[2]], _LONGEST))
    try:
        parsed = datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))  # Python 3.10 does not know the Z
    except ValueError as error:
        raise ValueError(f"{text!r} is neither like 10m, 2h or 3d nor like 2026-01-31T12:00") from error
    try:
        return parsed if parsed.tzinfo else parsed.astimezone()
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{text!r} is too long ago, or too far away") from error
