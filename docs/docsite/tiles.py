"""Small pictures of one size and one scale, for the gallery. Run this file to draw ``docs/img/gallery.png``.

Red adds, blue takes away, white is zero, in every tile but those of distances and layers. Axes are the same within a
group, so they are named once, in the legend of the gallery.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from pe_retrofit.plots import COLOURS, STYLE
from pe_retrofit.views import BiasView, HybridView, InputView, PiecewiseView, RotationView, Turning

INK, SOFT, MASKED = "#101828", "#667085", "#e4e7ec"
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#123c9c", "#3b74ee", "#a5c6fb", "#ffffff", "#fbc592", "#ea7f2b", "#b04708"]
).with_extremes(bad=MASKED)
DISTANCE = LinearSegmentedColormap.from_list("distance", ["#f4f1fd", "#b7a5ea", "#6941c6", "#2a1263"]).with_extremes(
    bad=MASKED
)

PIXELS = 96
"""Columns of a picture of a rotation."""

AXES = {
    "bias": ("key j, 0 to 63", "query i"),
    "score": ("key j, 0 to 63", "query i"),
    "pieces": ("key j, 0 to 2L", "query i"),
    "rotation": ("distance, 1 to 16k, log", "fast to slow"),
    "input": ("dimension", "position"),
    "hybrid": ("", "layer"),
}
"""What runs along the two axes of each group, for people."""


def paint(axes: Any, view: Any) -> None:
    """The picture of a view, without labels."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set(visible=True, color="#98a2b3", linewidth=0.6)
    painters = {
        BiasView: _bias,
        PiecewiseView: _pieces,
        RotationView: _rotation,
        InputView: _input,
        HybridView: _hybrid,
    }
    painters[type(view)](axes, view)


def tile(view: Any, label_x: str, label_y: str) -> bytes:
    """One tile as PNG, 300 x 300 pixels, with the names of its axes."""
    with rc_context(STYLE):
        drawn = Figure(figsize=(2.0, 2.0))
        FigureCanvasAgg(drawn)
        axes = drawn.add_axes((0.1, 0.1, 0.87, 0.87))
        paint(axes, view)
        axes.set_xlabel(label_x, fontsize=8, labelpad=3)
        axes.set_ylabel(label_y, fontsize=8, labelpad=3)
        return png(drawn)


def png(drawn: Figure, encodings: str = "") -> bytes:
    """A figure as PNG, without an alpha channel, which makes it a fifth smaller.

    Args:
        encodings: names of what it shows, kept in the file.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    if encodings:
        told.add_text("encodings", encodings)
    raw = io.BytesIO()
    drawn.savefig(raw, format="png")
    small = io.BytesIO()
    Image.open(raw).convert("RGB").save(small, format="png", optimize=True, pnginfo=told)
    return small.getvalue()


def _bias(axes: Any, view: BiasView) -> None:
    """One head in the middle: steep enough to see, and not the steepest."""
    matrix = view.matrix[view.matrix.shape[0] // 2 - 1].numpy()
    known = np.abs(matrix[np.isfinite(matrix)])
    limit = float(np.quantile(known, 0.995)) or 1.0
    axes.imshow(matrix, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")


def _pieces(axes: Any, view: PiecewiseView) -> None:
    """On one scale, from 0 to the trained length."""
    axes.imshow(view.matrix.numpy(), cmap=DISTANCE, vmin=0, vmax=view.trained, interpolation="nearest", aspect="auto")


def _rotation(axes: Any, view: RotationView) -> None:
    """The cosine of each frequency at each distance; dashed: where stock RoPE has made one turn."""
    turning = list(view.after.values())[-1]
    edges = np.logspace(0, np.log10(16384), PIXELS + 1)
    axes.imshow(_cosines(turning, edges), cmap=SIGNED, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    periods = view.stock.periods.numpy()
    places = np.log10(periods) / np.log10(16384) * PIXELS - 0.5
    inside = places < PIXELS - 0.5
    axes.plot(places[inside], np.arange(len(periods))[inside], color=INK, linewidth=0.9, linestyle=(0, (4, 2)))


def _cosines(turning: Turning, edges: np.ndarray) -> np.ndarray:
    """``[d / 2, n]``: the mean cosine between the edges, with its decay; amplitudes are left out."""
    rates = turning.inv_freq.double().numpy()[:, None]
    low, high = edges[:-1], edges[1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (np.sin(rates * high) - np.sin(rates * low)) / (rates * (high - low))
    mean = np.where(rates == 0, 1.0, mean)
    if turning.decay is not None:
        mean = mean * turning.decay.numpy()[:, None] ** ((low + high) / 2)
    return mean


def _input(axes: Any, view: InputView) -> None:
    vectors = view.vectors.numpy()[:, :32]
    limit = float(np.quantile(np.abs(vectors), 0.98)) or float(np.abs(vectors).max()) or 1.0
    axes.imshow(vectors, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")


def _hybrid(axes: Any, view: HybridView) -> None:
    """A bar per layer, the first one on top."""
    kinds = list(dict.fromkeys(view.layers))
    for layer, words in enumerate(view.layers):
        plain = words == "nope"
        axes.barh(layer, 1.0, height=0.82, color=COLOURS[1] if plain else COLOURS[0], alpha=0.9 if plain else 0.75)
        axes.text(0.5, layer, words, ha="center", va="center", fontsize=6, color="white")
    axes.set(xlim=(0, 1), ylim=(len(view.layers) - 0.5, -0.5))
    assert len(kinds) >= 2


def overview() -> bytes:
    """All tiles in one picture, as PNG."""
    from docsite.shown import GROUPS, by_group

    groups, row, column = by_group(), 0, 0
    cells: list[Cell] = []
    for group in ("bias", "score", "hybrid", "rotation", "pieces", "input"):
        if column and column + len(groups[group]) > COLUMNS:
            row, column = row + 1, 0
        for place, one in enumerate(groups[group]):
            if column == COLUMNS:
                row, column = row + 1, 0
            cells.append(Cell(row, column, one, GROUPS[group] if place == 0 else ""))
            column += 1
    return _compose(cells, row + 1)


COLUMNS = 8
SIDE, GAP, PITCH, TOP, LEFT = 1.3, 0.24, 2.02, 0.98, 0.42
"""Inches of the overview: a tile, the space beside it, a row with its words, the words above, the margin."""


@dataclass(frozen=True)
class Cell:
    """A tile of the overview; ``heading`` where its group begins."""

    row: int
    column: int
    one: Any
    heading: str


def _compose(cells: list[Cell], rows: int) -> bytes:
    width, height = LEFT + COLUMNS * (SIDE + GAP) + 0.1, rows * PITCH + 0.62
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)

        def write(x: float, y: float, words: str, size: float, **style: Any) -> None:
            drawn.text(x / width, y / height, words, **{"fontsize": size, "color": INK, "va": "bottom", **style})

        def add(x: float, y: float, wide: float, high: float) -> Any:
            return drawn.add_axes((x / width, y / height, wide / width, high / height))

        def corner(row: int, column: int) -> tuple[float, float]:
            return LEFT + column * (SIDE + GAP), height - TOP - row * PITCH - SIDE

        write(LEFT, height - 0.4, "Positional encodings", 15, fontweight="bold")
        for cell in cells:
            x, y = corner(cell.row, cell.column)
            axes = add(x, y, SIDE, SIDE)
            paint(axes, cell.one.view())
            write(x, y + SIDE + 0.05, cell.one.name, 8.5, family="DejaVu Sans Mono")
            if cell.heading:
                write(x, y + SIDE + 0.24, cell.heading, 10.5, fontweight="bold")
            if cell.heading or cell.column == 0:
                across, down = AXES[cell.one.group]
                axes.set_xlabel(across, fontsize=7, labelpad=2, color=SOFT)
                axes.set_ylabel(down, fontsize=7, labelpad=2, color=SOFT)
        _key(write, add, *corner(0, COLUMNS - 1))
        return png(drawn, " ".join(sorted(cell.one.name for cell in cells)))


def _key(write: Any, add: Any, x: float, y: float) -> None:
    """What the colours mean, in the free place at the end of the first row."""
    scale = np.linspace(0, 1, 128)[None]
    for up, colours, words in (
        (1.16, SIGNED, ("minus", "0", "plus")),
        (0.74, DISTANCE, ("distance 0", "", "trained L")),
    ):
        axes = add(x, y + up, SIDE, 0.1)
        axes.imshow(scale, cmap=colours, aspect="auto")
        axes.set_axis_off()
        for place, align, word in zip((0, SIDE / 2, SIDE), ("left", "center", "right"), words, strict=True):
            write(x + place, y + up - 0.14, word, 7, color=SOFT, ha=align)
    lines = ("grey: masked", "dashed: one turn of RoPE", "learned values: random", "each to its own scale")
    for line, words in enumerate(lines):
        write(x, y + 0.4 - 0.135 * line, words, 7, color=SOFT)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    torch.set_num_threads(1)
    target = Path(__file__).resolve().parents[1] / "img" / "gallery.png"
    target.write_bytes(overview())
    print(target.name, target.stat().st_size)
