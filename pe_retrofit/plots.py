"""Small charts in one style. Every function draws one figure and writes one PNG; nothing is shown or kept open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2563eb", "#dc6803", "#0f9d73", "#c11574", "#6941c6", "#667085", "#b54708", "#088ab2", "#4d7c0f", "#7a271a")
"""Line colours, in order; distinguishable in print and for most colour-blind readers together with the markers."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

STYLE: Any = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#98a2b3",
    "axes.labelcolor": "#344054",
    "axes.titlecolor": "#101828",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaecf0",
    "grid.linewidth": 0.8,
    "xtick.color": "#475467",
    "ytick.color": "#475467",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "font.family": "DejaVu Sans",
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}

Points = Sequence[tuple[float, float]]


@contextmanager
def figure(width: float = 8.0, height: float = 4.5, **layout: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes in the house style, closed afterwards; no display is needed.

    Args:
        width, height: inches.
        **layout: for ``Figure.subplots``, e.g. ``nrows=1, ncols=2``.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn, drawn.subplots(**layout)


def save(drawn: Figure, path: str | Path) -> Path:
    """Write a figure as PNG; folders are made as needed.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, format="png")
    return path


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    title: str,
    path: str | Path,
    *,
    log_x: bool = False,
    log_y: bool = False,
    x_format: Callable[[float], str] | None = None,
    x_ticks: Sequence[float] | None = None,
    vlines: Mapping[str, float] | None = None,
    hlines: Mapping[str, float] | None = None,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    emphasise: Sequence[str] = (),
    width: float = 8.0,
    height: float = 4.5,
) -> Path:
    """Lines with markers, one per series.

    Args:
        series: label -> points ``(x, y)``; points that are not finite are left out.
        x_label, y_label: with units.
        title: says what is seen.
        path: PNG to write.
        log_x, log_y: logarithmic axes.
        x_format: text of an x tick, e.g. :func:`thousands`.
        x_ticks: where ticks go; by default at the points when there are at most twelve.
        vlines, hlines: label -> value of dashed marks, e.g. ``{"trained length": 8192}``.
        bands: label -> intervals ``(x, low, high)``, shaded in the colour of the series.
        emphasise: labels drawn thicker, such as the unpatched model.

    Returns:
        The path written.
    """
    with figure(width, height) as (drawn, axes):
        for i, (label, points) in enumerate(series.items()):
            colour = "#101828" if label in emphasise else COLOURS[i % len(COLOURS)]
            if bands and bands.get(label):
                x, low, high = zip(*sorted(bands[label]), strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
            kept = sorted((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))
            thick = label in emphasise
            axes.plot(
                [x for x, _ in kept],
                [y for _, y in kept],
                label=label,
                color=colour,
                marker=MARKERS[i % len(MARKERS)] if len(kept) <= 40 else None,
                markersize=5,
                linewidth=2.6 if thick else 1.8,
                zorder=3 if thick else 2,
            )
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
            plain_log_ticks(axes)
        places = sorted({x for points in series.values() for x, _ in points})
        ticks = list(x_ticks) if x_ticks is not None else (places if len(places) <= 12 else None)
        if ticks is not None:
            show = x_format or thousands
            axes.set_xticks(ticks, [show(x) for x in ticks])
            if log_x:
                axes.tick_params(axis="x", which="minor", bottom=False)
        mark(axes, vlines, hlines)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        legend(axes, len(series))
        return save(drawn, path)


def bar_chart(
    groups: Mapping[str, Mapping[str, float]],
    x_label: str,
    y_label: str,
    title: str,
    path: str | Path,
    *,
    log_y: bool = False,
    value_format: str = "{:.3g}",
    hlines: Mapping[str, float] | None = None,
    width: float | None = None,
    height: float = 4.5,
) -> Path:
    """Bars side by side, each labelled with its value.

    Args:
        groups: label of a colour -> {label under the axis -> value}; a missing or non-finite value leaves a gap.
        x_label, y_label, title, path, log_y: as for :func:`line_chart`.
        value_format: of the number on each bar.
        hlines: label -> value of dashed marks, such as ``{"unpatched": 1.0}``.
        width: inches; grows with the number of bars by default.

    Returns:
        The path written.
    """
    places = list(dict.fromkeys(name for values in groups.values() for name in values))
    bars = max(1, len(places) * max(1, len(groups)))
    with figure(width or min(16.0, max(6.0, 2.0 + 0.55 * bars)), height) as (drawn, axes):
        each = 0.8 / max(1, len(groups))
        for i, (label, values) in enumerate(groups.items()):
            known = [(p, values[n]) for p, n in enumerate(places) if n in values and math.isfinite(values[n])]
            shift = (i - (len(groups) - 1) / 2) * each
            drawn_bars = axes.bar(
                [p + shift for p, _ in known], [v for _, v in known], each * 0.94, label=label, color=COLOURS[i % 10]
            )
            axes.bar_label(
                drawn_bars, [value_format.format(v) for _, v in known], padding=2, fontsize=8, color="#344054"
            )
        if log_y:
            axes.set_yscale("log")
            plain_log_ticks(axes)
        axes.margins(y=0.12)
        long = max((len(p) for p in places), default=0) > 12 and len(places) > 4
        axes.set_xticks(range(len(places)), places, rotation=25 if long else 0, ha="right" if long else "center")
        axes.grid(visible=False, axis="x")
        mark(axes, None, hlines)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if len(groups) > 1 or hlines:
            legend(axes, len(groups))
        return save(drawn, path)


def heatmap(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    x_label: str,
    y_label: str,
    title: str,
    path: str | Path,
    *,
    low: float = 0.0,
    high: float = 1.0,
    value_format: str = "{:.0%}",
) -> Path:
    """A grid of numbers on a scale of one colour, each written in its cell; None leaves the cell grey.

    Args:
        values: one row of numbers per label of ``rows``.
        rows, columns: labels.
        x_label, y_label, title, path: as for :func:`line_chart`.
        low, high: ends of the scale.
        value_format: of the number in each cell.

    Returns:
        The path written.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("house", ["#fdf1e7", "#7fb2e5", "#1d4ed8"]).with_extremes(bad="#eaecf0")
    data = np.array([[math.nan if v is None else v for v in row] for row in values], dtype=float)
    height = max(2.2, 1.4 + 0.42 * len(rows))
    with figure(max(4.5, 2.0 + 0.75 * len(columns)), height) as (drawn, axes):
        axes.imshow(np.ma.masked_invalid(data), cmap=scale, vmin=low, vmax=high, aspect="auto")
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                known = value is not None and math.isfinite(value)
                dark = value is not None and known and (value - low) > 0.6 * (high - low)
                text = value_format.format(value) if known else "-"
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "#101828")
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xticks([j - 0.5 for j in range(1, len(columns))], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, len(rows))], minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=2.5)
        axes.set_axisbelow(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(which="both", length=0)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        return save(drawn, path)


def mark(axes: Axes, vlines: Mapping[str, float] | None, hlines: Mapping[str, float] | None) -> None:
    """Dashed reference lines with their labels; call it when the limits of the axes are final."""
    for place, (label, x) in enumerate((vlines or {}).items()):
        axes.axvline(x, color="#98a2b3", linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        across = axes.transAxes.inverted().transform(axes.transData.transform((x, axes.get_ylim()[0])))[0]
        right = bool(across > 0.8)  # no room for the label on the right of the line
        axes.annotate(
            label,
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, -4 - 12 * place),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=8.5,
            color="#667085",
        )
    for label, y in (hlines or {}).items():
        axes.axhline(y, color="#98a2b3", linestyle=(0, (4, 3)), linewidth=1.2, zorder=1, label=label)


def legend(axes: Axes, entries: int) -> None:
    """Inside where there is room, beside the axes where there are many entries."""
    if entries > 6:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)
    elif entries:
        axes.legend(loc="best")


def plain_log_ticks(axes: Axes) -> None:
    """Ordinary numbers on a logarithmic y axis, with enough of them to read values off."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    decades = math.log10(high / low) if low > 0 else 9.0
    steps = (1, 2, 5) if decades < 3.5 else (1,)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}" if y >= 10 else f"{y:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def thousands(x: float) -> str:
    """``512``, ``8k``, ``1M``: lengths in tokens, in units of 1024 where that is exact."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if x >= size and x % size == 0:
            return f"{int(x // size)}{unit}"
    return f"{x:g}"
