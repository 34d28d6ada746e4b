"""Line charts as inline SVG: no JavaScript, colors from the page's style sheet, values on hover."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 34
MAX_DRAWN, MAX_HOVER = 400, 120
COLORS = 6  # of lines, in the style sheet

Transform = Callable[[float, float], tuple[float, float]]


class Series(NamedTuple):
    """A line through points in the order of x; points that cannot be drawn, such as NaN, leave a gap.

    ``band`` is drawn behind it: x, lower and upper end, in the order of x. ``color`` is one of 1 to 6; 0: by its place.
    """

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    color: int = 0


def line_chart(title: str, series: Sequence[Series], *, unit: str = "", x_label: str = "step") -> Markup:
    """A ``<figure>`` with a legend, axes, ticks and hover titles; empty if there is no finite point."""
    finite = [p for s in series for p in s.points if _drawable(p)]
    if not finite:
        return Markup("")
    series = [s._replace(color=s.color or i % COLORS + 1) for i, s in enumerate(series)]
    ends = [y for s in series for x, low, high in s.band for y in (low, high) if _drawable((x, y))]
    x_ticks = _ticks(min(p[0] for p in finite), max(p[0] for p in finite), 6, whole=True)
    y_ticks = _ticks(min([*ends, *(p[1] for p in finite)]), max([*ends, *(p[1] for p in finite)]), 5)
    x_low, x_high = min(p[0] for p in finite), max(p[0] for p in finite)
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def to_pixels(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    elements = []
    for tick in y_ticks:
        _, y = to_pixels(x_low, tick)
        elements.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        elements.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{number(tick)}{escape(unit)}</text>')
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x, _ = to_pixels(tick, y_low)
            base = HEIGHT - BOTTOM
            elements.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{base}" y2="{base + 4}"/>')
            elements.append(f'<text x="{x}" y="{base + 17}" text-anchor="middle">{number(tick)}</text>')
    elements.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    elements.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    elements += [_band(s, to_pixels) for s in series]
    elements += [_line(s, to_pixels, unit=unit, x_label=x_label) for s in series]
    legend = "".join(f'<span><i class="s{s.color}"></i>{escape(s.label)}</span>' for s in series if len(series) > 1)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(elements)}</svg>'
    return Markup(f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>{svg}</figure>")


def number(value: float) -> str:
    """Formats a number briefly: 12,000 as 12k, 0.000031 as 3.1e-5, NaN as NaN."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e12:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def _band(series: Series, to_pixels: Transform) -> str:
    ends = [(x, low, high) for x, low, high in series.band if _drawable((x, low)) and _drawable((x, high))]
    if len(ends) < 2:
        return ""
    outline = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
    path = "L".join(f"{across} {down}" for across, down in (to_pixels(x, y) for x, y in outline))
    return f'<path class="band s{series.color}" d="M{path}Z"/>'


def _line(series: Series, to_pixels: Transform, *, unit: str, x_label: str) -> str:
    color = series.color
    drawn = thin(series.points, MAX_DRAWN)
    path, pen_down, dots = [], False, []
    for i, (x, y) in enumerate(drawn):
        if not _drawable((x, y)):
            pen_down = False
            continue
        across, down = to_pixels(x, y)
        path.append(f"{'L' if pen_down else 'M'}{across} {down}")
        ends = i + 1 == len(drawn) or not _drawable(drawn[i + 1])
        if len(drawn) <= 24 or (ends and not pen_down):
            dots.append(f'<circle class="dot s{color}" cx="{across}" cy="{down}" r="2.5"/>')
        pen_down = True
    hover = []
    every = max(1, -(-len(drawn) // MAX_HOVER))
    for x, y in drawn[::every]:
        if _drawable((x, y)):
            across, down = to_pixels(x, y)
            title = escape(f"{series.label}: {number(y)}{unit} at {x_label} {x:,.0f}")
            hover.append(f'<circle class="hit" cx="{across}" cy="{down}" r="7"><title>{title}</title></circle>')
    return f'<path class="line s{color}" d="{"".join(path)}"/>{"".join(dots)}{"".join(hover)}'


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most about ``limit`` points that keep the first, the last, and the extremes of each interval between them."""
    points = list(points)
    if len(points) <= limit:
        return points
    interval = -(-2 * len(points) // limit)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), interval):
        rows = range(start, min(start + interval, len(points)))
        finite = [r for r in rows if math.isfinite(points[r][1])]
        kept |= (
            {min(finite, key=lambda r: points[r][1]), max(finite, key=lambda r: points[r][1])}
            if finite
            else set(rows[:1])
        )
    return [points[r] for r in sorted(kept)]


def _drawable(point: tuple[float, float]) -> bool:
    # Beyond this the axis range overflows.
    return math.isfinite(point[0]) and math.isfinite(point[1]) and abs(point[1]) < 1e30


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Evenly spaced round numbers from at or below ``low`` to at or above ``high``."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-200):
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough), 10 * power)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
