"""Charts as inline SVG: small, readable in light and dark (colours are CSS variables), sharp at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ...plots import thousands
from ..charts import Lines, Series

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 38, 42

Scale = tuple[float, float]


def line_svg(chart: Lines, colours: Mapping[str, str]) -> str:
    """One chart.

    Args:
        chart: what to draw.
        colours: label -> CSS class that sets ``color``.
    """
    series = [s for s in chart.series if s.points]
    times = 100.0 if chart.percent else 1.0
    x_values = sorted({x for s in series for x, _ in s.points})
    x_scale = (math.log2(min([*x_values, *chart.marks.values()])), math.log2(max([*x_values, *chart.marks.values()])))
    values = [times * y for s in series for _, y in s.points]
    ends = [times * y for s in series for _, *pair in s.intervals for y in pair]
    y_scale, ticks = _log_axis(values, ends) if chart.log_y else _linear_axis(values, ends, chart.ceiling)

    def at_x(x: float) -> float:
        span = (x_scale[1] - x_scale[0]) or 1.0
        return LEFT + 12 + (math.log2(x) - x_scale[0]) / span * (WIDTH - LEFT - RIGHT - 24)

    def at_y(y: float) -> float:
        y = min(max(y, y_scale[0]), y_scale[1])
        low, high, y = (math.log(v) for v in (*y_scale, y)) if chart.log_y else (*y_scale, y)
        return TOP + (high - y) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" class="chart">',
        f"<title>{escape(chart.title)}</title>",
    ]
    for value in ticks:
        y = at_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_plain(value)}</text>')
    for value in _thinned(x_values):
        x = at_x(value)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{thousands(value)}</text>'
        )
    middle, unit = (LEFT + WIDTH - RIGHT) / 2, escape(chart.unit)
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{unit}</text>')
    parts += _marks(chart, at_x)
    for line in sorted(series, key=lambda s: not s.stock):
        parts += _line(line, colours.get(line.label, "c0"), times, at_x, at_y)
    return "".join([*parts, "</svg>"])


def _marks(chart: Lines, at_x: object) -> list[str]:
    parts = []
    for place, (label, value) in enumerate(sorted(chart.marks.items(), key=lambda item: item[1])):
        x = at_x(value)  # type: ignore[operator]
        right = x > WIDTH * 0.62
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="mark" x="{x + (6 if right else -6):.1f}" y="{TOP - 8 - 14 * (place % 2)}" '
            f'text-anchor="{"end" if right else "start"}">{escape(label)}</text>'
        )
    return parts


def _line(line: Series, colour: str, times: float, at_x: object, at_y: object) -> list[str]:
    def place(x: float, y: float) -> str:
        return f"{at_x(x):.1f},{at_y(times * y):.1f}"  # type: ignore[operator]

    parts = [f'<g class="{colour}{" stock" if line.stock else ""}">']
    band = sorted(line.intervals)
    if len(band) > 1:
        outline = [place(x, low) for x, low, _ in band] + [place(x, high) for x, _, high in reversed(band)]
        parts.append(f'<polygon class="band" points="{" ".join(outline)}"/>')
    for x, low, high in band if len(band) == 1 else []:
        parts.append(f'<polyline class="whisker" points="{place(x, low)} {place(x, high)}"/>')
    points = sorted(line.points)
    parts.append(f'<polyline class="line" points="{" ".join(place(x, y) for x, y in points)}"/>')
    spans = {x: (low, high) for x, low, high in line.intervals}
    for x, y in points:
        more = "" if x not in spans else f" ({_plain(times * spans[x][0])} to {_plain(times * spans[x][1])})"
        told = escape(f"{line.label}, {thousands(x)}: {_plain(times * y)}{more}")
        cx, cy = place(x, y).split(",")
        parts.append(f'<circle cx="{cx}" cy="{cy}" r="3.4"><title>{told}</title></circle>')
    return [*parts, "</g>"]


def _thinned(values: Sequence[float]) -> list[float]:
    """As many as fit side by side, the last among them, none too near to its neighbour."""
    kept: list[float] = []
    span = (math.log2(values[-1]) - math.log2(values[0])) or 1.0
    for value in reversed(values):
        if not kept or math.log2(kept[-1]) - math.log2(value) >= 0.09 * span:
            kept.append(value)
    return kept


def _linear_axis(values: Sequence[float], ends: Sequence[float], ceiling: float | None) -> tuple[Scale, list[float]]:
    low, high = min([0.0, *values, *ends]), max([*values, *ends, 0.0])
    if ceiling is not None:
        high = max(high, 100.0 * ceiling)
    if high - low < 10:  # differences of less than that are noise, and must not fill the picture
        low, high = low - 5, high + 5
    step = _step(high - low)
    first, last = math.floor(low / step), math.ceil(high / step)
    return (first * step, last * step), [i * step for i in range(first, last + 1)]


def _log_axis(values: Sequence[float], ends: Sequence[float]) -> tuple[Scale, list[float]]:
    """Around the values; intervals are followed up to a factor of two beyond them."""
    low, high = min(values), max(values)
    low = max(min([low, *ends]), low / 2) * 0.97
    high = min(max([high, *ends]), high * 2) * 1.03
    if high / low < 4:
        step = _step(high - low)
        ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    else:
        steps = (1, 2, 5) if high / low < 300 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
    return (low, high), ticks


def _step(span: float) -> float:
    """A round distance that divides a span into three to six."""
    if span <= 0:
        return 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def _plain(value: float) -> str:
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:g}".replace("-", "\u2212")
