"""One finding, and how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at; stable, for scripts.
        level: `ok`, `warning` or `error`.
        message: what was found.
        advice: what to do about it; None when nothing is to be done.
    """

    check: str
    level: Level
    message: str
    advice: str | None = None
