"""Pictures of results: what is drawn, as data, and drawn as PNG files. The report draws the same data inline."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..plots import heatmap, line_chart, thousands


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: of the model.
        points: (tokens, value).
        intervals: (tokens, low, high), 95 %.
        stock: whether it is a stock model.
    """

    label: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float, float]] = ()
    stock: bool = False


@dataclass(frozen=True)
class Lines:
    """A chart of lines over length.

    Attributes:
        name: for the file.
        title, y_label: in words.
        series: lines.
        log_y: logarithmic.
        marks: label -> length that is marked.
        percent: values are shares.
        ceiling: upper end of the axis; None follows the values.
        unit: of the lengths.
    """

    name: str
    title: str
    y_label: str
    series: Sequence[Series]
    log_y: bool = False
    marks: Mapping[str, float] = field(default_factory=dict)
    percent: bool = False
    ceiling: float | None = None
    unit: str = "tokens"


@dataclass(frozen=True)
class Grid:
    """Scores by depth and length of one model."""

    name: str
    title: str
    label: str
    depths: Sequence[float]
    lengths: Sequence[int]
    values: Sequence[Sequence[float | None]]


def view_lines(comparison: Mapping[str, Any], task: Mapping[str, Any], view: Mapping[str, Any]) -> list[Lines]:
    """Means over length with intervals, and what lies between each run and its stock model. Nothing for one length."""
    if len(view["lengths"]) < 2:
        return []
    stock = {model["label"] for model in comparison["models"] if model["role"] == "stock"}
    unit = task.get("unit", "tokens")
    marks = _marks(comparison, view["lengths"]) if unit == "tokens" else {}
    scored = task["metric"] != "perplexity"
    what = f"{task['name']}-{view['variant']}" if view["variant"] else task["name"]
    means = [_series(row, view["lengths"], "mean", row["label"] in stock) for row in view["rows"]]
    changes = [_change(row, view["lengths"], row["label"] in stock, 0.0 if scored else 1.0) for row in view["rows"]]
    title = title_of(task, view)
    y_label = "score, %" if scored else "perplexity"
    found = [Lines(what, title, y_label, means, not scored, marks, scored, 1.0 if scored else None, unit)]
    if any(series.points and not series.stock for series in changes):
        name, y_label = ("minus-stock", "points above stock") if scored else ("over-stock", "perplexity over stock's")
        more = ", retrofit minus stock" if scored else ", retrofit over stock"
        found.append(Lines(f"{what}-{name}", title + more, y_label, changes, not scored, marks, scored, None, unit))
    return [chart for chart in found if any(len(series.points) > 1 for series in chart.series)]


def view_grids(task: Mapping[str, Any], view: Mapping[str, Any]) -> list[Grid]:
    """Depth by length, one grid per model."""
    if task["metric"] == "perplexity":
        return []
    what = f"{task['name']}-{view['variant']}" if view["variant"] else task["name"]
    return [
        Grid(f"{what}-depth-{slug(label)}", f"{task['title']}: {label}", label, view["depths"], view["lengths"], values)
        for label, values in view["grids"].items()
    ]


def title_of(task: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """What a view shows, in words."""
    title, more = str(task["title"]), str(view["title"])
    if more.lower().startswith(title.lower()):
        return more[:1].upper() + more[1:]
    return f"{title}: {more}" if more else title


def write_pictures(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """All pictures as PNG files in a folder; what was drawn there before is replaced, file by file."""
    written: list[Path] = []
    for chart in _all(comparison):
        names = {path.stem for path in written}
        name = chart.name
        while slug(name) in names:
            name += "-2"
        written.append(_draw(chart, folder / f"{slug(name)}.png"))
    return written


def slug(text: str) -> str:
    """A name that is fit for a file."""
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", text).strip("-.")[:80] or "x"


def _all(comparison: Mapping[str, Any]) -> Iterator[Lines | Grid]:
    for task in comparison["tasks"]:
        for view in task["views"]:
            yield from view_lines(comparison, task, view)
            yield from view_grids(task, view)


def _series(row: Mapping[str, Any], lengths: Sequence[int], key: str, stock: bool) -> Series:
    known = [(n, cell) for n, cell in zip(lengths, row["cells"], strict=True) if cell is not None]
    interval = "ci95" if key == "mean" else "change_ci95"
    return Series(
        row["label"],
        [(n, cell[key]) for n, cell in known if cell[key] is not None],
        [(n, *cell[interval]) for n, cell in known if cell[key] is not None and cell[interval] is not None],
        stock,
    )


def _change(row: Mapping[str, Any], lengths: Sequence[int], stock: bool, level: float) -> Series:
    if stock:
        return Series(row["label"], [(n, level) for n in lengths], (), True)
    return _series(row, lengths, "change", False)


def _marks(comparison: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, float]:
    """Trained and extended lengths that lie within or near what was evaluated."""
    marks: dict[str, float] = {}
    trained = {model["trained_length"] for model in comparison["models"] if model["trained_length"]}
    for length in sorted(trained):
        marks[f"trained: {thousands(length)}"] = length
    for model in comparison["models"]:
        length = model["context_length"]
        if model["role"] == "run" and length and length not in trained:
            marks.setdefault(f"extended: {thousands(length)}", length)
    return {label: n for label, n in marks.items() if lengths[0] <= n <= 2 * lengths[-1]}


def _draw(chart: Lines | Grid, path: Path) -> Path:
    fresh = path.with_name(path.name + ".new")
    if isinstance(chart, Grid):
        heatmap(
            chart.values,
            [f"{depth:.0%}" for depth in chart.depths],
            [thousands(n) for n in chart.lengths],
            "length, tokens",
            "depth",
            chart.title,
            fresh,
        )
    else:
        times = 100.0 if chart.percent else 1.0
        line_chart(
            {series.label: [(x, times * y) for x, y in series.points] for series in chart.series},
            f"length, {chart.unit}",
            chart.y_label,
            chart.title,
            fresh,
            log_x=True,
            log_y=chart.log_y,
            vlines=chart.marks,
            bands={s.label: [(x, times * low, times * high) for x, low, high in s.intervals] for s in chart.series},
            emphasise=[series.label for series in chart.series if series.stock],
        )
    fresh.replace(path)
    return path
