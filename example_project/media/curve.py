"""Drawing a loudness curve as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 720, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 712, 12, 176
LOUDEST, QUIETEST = 0, -70  # LUFS at the top and bottom edge
GRID = (0, -20, -40, -60)

# Drawn to be seen on a white and on a black page, alone or inside the report.
_STYLE = """
  .grid { stroke: #8884; } .label { fill: #888; font: 11px system-ui, sans-serif; }
  .area { fill: #2a9d8f33; } .line { fill: none; stroke: #2a9d8f; stroke-width: 2; stroke-linejoin: round; }
"""


def draw_curve(curve: Sequence[float], interval: float) -> str:
    """An SVG of the curve over time.

    Args:
        curve: loudness in LUFS.
        interval: seconds between two values.
    """
    points = [f"{_x(index, len(curve)):.1f},{_y(value):.1f}" for index, value in enumerate(curve)]
    if len(points) == 1:  # a single value is a level line
        points.append(f"{RIGHT},{_y(curve[0]):.1f}")
    line = " ".join(points)
    outline = f'<polygon class="area" points="{LEFT},{BOTTOM} {line} {RIGHT},{BOTTOM}"/>' if points else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>Momentary loudness over time</title><style>{_STYLE}</style>"
        f"{_levels()}{outline}"
        f'<polyline class="line" points="{line}"/>'
        f"{_times(max(len(curve) - 1, 0) * interval)}</svg>"
    )


def _levels() -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{_y(level):.1f}" y2="{_y(level):.1f}"/>'
        f'<text class="label" x="{LEFT - 6}" y="{_y(level) + 4:.1f}" text-anchor="end">{level}</text>'
        for level in GRID
    )


def _times(duration: float) -> str:
    marks = [(LEFT, "start", "0:00")]
    if duration > 0:
        marks += [((LEFT + RIGHT) // 2, "middle", _clock(duration / 2)), (RIGHT, "end", _clock(duration))]
    return "".join(
        f'<text class="label" x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in marks
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f}:{rest:04.1f}"


def _x(index: int, count: int) -> float:
    return LEFT + (RIGHT - LEFT) * index / max(count - 1, 1)


def _y(loudness: float) -> float:
    clipped = min(max(loudness, QUIETEST), LOUDEST)
    return TOP + (BOTTOM - TOP) * (LOUDEST - clipped) / (LOUDEST - QUIETEST)
