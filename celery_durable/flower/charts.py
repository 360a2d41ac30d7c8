"""Charts as SVG, small enough to be written by hand; each says in words what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celery_durable.operations.wording import span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from celery_durable.flower.overview import Slot

_WIDE, _HIGH, _LEFT, _BELOW = 600, 150, 46, 16


@dataclass(frozen=True)
class _Frame:
    slots: Sequence[Slot]
    top: float

    def x(self, number: float) -> float:
        return _LEFT + number * (_WIDE - _LEFT) / max(len(self.slots), 1)

    def y(self, value: float) -> float:
        return (_HIGH - _BELOW) * (1 - value / self.top) + 4

    @property
    def step(self) -> float:
        return (_WIDE - _LEFT) / max(len(self.slots), 1)


def bars(slots: Sequence[Slot], names: Sequence[str], words: str) -> str:
    """Return stacked bars of the numbers that `names` are in each slot."""
    most = max((sum(getattr(one, name) for name in names) for one in slots), default=0)
    frame = _Frame(slots, _nice(most, least=2))
    parts = []
    for number, slot in enumerate(slots):
        base = 0
        title = ", ".join(f"{getattr(slot, name):,} {name}" for name in names)
        shapes = ""
        for name in names:
            value = getattr(slot, name)
            if value:
                top = frame.y(base + value)
                shapes += (
                    f'<rect class="dur-fill-{name}" x="{frame.x(number) + 0.5:.1f}" y="{top:.1f}" '
                    f'width="{max(frame.step - 1, 1):.1f}" height="{max(frame.y(base) - top, 0.5):.1f}"/>'
                )
                base += value
        if shapes:
            parts.append(f"<g><title>{slot.at:%d %b %H:%M}: {title}</title>{shapes}</g>")
    return _svg(frame, "".join(parts), words, lambda value: f"{value:,.0f}")


def lines(slots: Sequence[Slot], name: str, words: str) -> str:
    """Return two lines: the median and the 95th percentile of `took` or `queued`."""
    values = [value for slot in slots for value in getattr(slot, name) if value is not None]
    frame = _Frame(slots, _nice(max(values, default=0.0), least=0.001))
    shapes = ""
    for which, style in ((0, "p50"), (1, "p95")):
        points: list[str] = []
        for number, slot in enumerate(slots):
            value = getattr(slot, name)[which]
            if value is None:
                continue
            x, y = frame.x(number + 0.5), frame.y(value)
            points.append(f"{x:.1f},{y:.1f}")
            shapes += (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" class="dur-point-{style}">'
                f"<title>{slot.at:%d %b %H:%M}: {style} {span(value)}</title></circle>"
            )
        shapes += f'<polyline class="dur-line dur-line-{style}" points="{" ".join(points)}"/>'
    return _svg(frame, shapes, words, span)


def _svg(frame: _Frame, shapes: str, words: str, label: Callable[[float], str]) -> str:
    grid = ""
    for share in (0.0, 0.5, 1.0):
        y = frame.y(frame.top * share)
        grid += f'<line class="dur-grid-line" x1="{_LEFT}" x2="{_WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>'
        grid += f'<text x="{_LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{label(frame.top * share)}</text>'
    for number in range(0, len(frame.slots), max(1, len(frame.slots) // 6)):
        at = frame.slots[number].at
        grid += f'<text x="{frame.x(number):.1f}" y="{_HIGH}">{at:%H:%M}</text>'
    return f'<svg viewBox="0 0 {_WIDE} {_HIGH + 4}" role="img" aria-label="{words}">{grid}{shapes}</svg>'


def _nice(value: float, least: float = 1.0) -> float:
    """Return a round number that is at least `value`."""
    if value <= least:
        return least
    size = 1.0
    while size * 10 < value:
        size *= 10
    while size > value:
        size /= 10
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= value)
