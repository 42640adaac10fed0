"""Plots as inline SVG: no scripts, no network; colours come from the page, so that dark mode works."""

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 440, 250  # narrow, so that the numbers stay readable on a telephone
LEFT, RIGHT, TOP, BOTTOM = 80, 14, 14, 46


def line_chart(
    series: Mapping[str, Points], x_label: str, y_label: str, marks: Mapping[str, float] | None = None
) -> str:
    """An SVG with one line per name and, for each mark, a dashed horizontal line. Empty text where there is
    nothing to draw.

    Lines take the classes line-0 .. line-5, whose colours the page defines. Values that are not finite are
    left out.
    """
    clean = {
        name: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])]
        for name, points in series.items()
    }
    clean = {name: points for name, points in clean.items() if points}
    marks = {name: value for name, value in (marks or {}).items() if math.isfinite(value)}
    if not clean:
        return ""
    xs = [x for points in clean.values() for x, _ in points]
    ys = [y for points in clean.values() for _, y in points] + list(marks.values())
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    frame = _Frame(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    title = f"{y_label} over {x_label}"
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title, quote=True)}">']
    parts += _axes(frame, x_ticks, y_ticks, x_label, y_label)
    for name, value in marks.items():
        y = frame.y(value)
        parts.append(f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 4}" y="{y - 4:.1f}">{html.escape(name)}</text>')
    for number, points in enumerate(clean.values()):
        parts.append(_line(frame, points, number % 6))
    return "".join(parts) + "</svg>" + legend(list(clean))


def legend(names: Sequence[str]) -> str:
    """The names of the lines with their colours; nothing for one line."""
    if len(names) < 2:
        return ""
    items = "".join(
        f'<li><span class="swatch line-{number % 6}"></span>{html.escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span [low, high]."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]


class _Frame:
    """From values to places on the page."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.width = left, max(right - left, 1e-12)
        self.low, self.height = low, max(high - low, 1e-12)

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / self.width * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / self.height * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_ticks: list[float], y_ticks: list[float], x_label: str, y_label: str) -> list[str]:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        anchor = "end" if value == x_ticks[-1] else "middle"
        parts.append(
            f'<text class="tick" x="{frame.x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="{anchor}">{value:,g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="tick" transform="translate(13 {middle}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_label)}</text>'
    )
    return parts


def _line(frame: _Frame, points: Points, number: int) -> str:
    if len(points) == 1:
        x, y = points[0]
        return f'<circle class="line-{number}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    return f'<polyline class="line-{number}" points="{path}"/>'
