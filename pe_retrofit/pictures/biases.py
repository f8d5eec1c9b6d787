"""Pictures of what is added to the attention logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..plots import COLOURS, figure, save
from ..views import BiasView
from .common import colours, gaps, spread, titled


def draw_bias(view: BiasView, title: str, path: str | Path, most: int = 8) -> Path:
    """Left: the matrix of up to ``most`` heads, on one colour scale. Right: what is added against distance.

    Below that, where there is one: the row of the table each distance reads, the positions counted, or what queries at
    different positions see.
    """
    shown = spread(view.matrix.shape[0], most)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    second = view.buckets is not None or view.counted is not None or bool(view.queries)
    with figure(12.5, 5.2) as (drawn, unused):
        unused.remove()
        grid = drawn.add_gridspec(max(2, rows), columns + 3, width_ratios=[1.0] * columns + [0.14, 1.4, 1.4])
        image = _matrices(drawn, grid, view, shown, columns, rows)
        bar = drawn.colorbar(image, cax=drawn.add_subplot(grid[:rows, columns]))
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
        bar.ax.grid(visible=False)
        axes = drawn.add_subplot(grid[0, columns + 1 :] if second else grid[:, columns + 1 :])
        style: dict[str, Any] = {"drawstyle": "steps-mid"} if view.buckets is not None else {}
        _lines(axes, view.distances.numpy(), view.bias.numpy(), shown, **style)
        masked = np.asarray(np.isneginf(view.bias.numpy()).all(0))
        for low, high in gaps(view.distances.numpy(), masked):
            axes.axvspan(low, high, color="#e4e7ec", zorder=0, label="masked")
        about = f"{view.what[0].upper()}{view.what[1:]} against distance"
        axes.set(xlabel="distance i - j (tokens)", ylabel="added to the attention logit", title=about)
        if not second:
            axes.legend(ncols=2, loc="best", fontsize=8)
        else:
            _second(drawn.add_subplot(grid[1:, columns + 1 :]), view, shown)
        drawn.suptitle(titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def _matrices(drawn: Any, grid: Any, view: BiasView, shown: list[int], columns: int, rows: int) -> Any:
    """One small picture per head; the last image, for a colour bar."""
    from matplotlib.colors import SymLogNorm

    values = view.matrix[shown].numpy()
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    signed = low < 0 < high
    if low == high:
        low, high = low - 1, high + 1
    limit = max(-low, high)
    scale: dict[str, Any] = {"vmin": -limit, "vmax": limit}
    if not signed and low < 0 < high:  # one value everywhere
        scale = {"vmin": low, "vmax": high}
    elif not signed:  # heads often differ by orders of magnitude
        scale = {"norm": SymLogNorm(linthresh=max(abs(low), abs(high)) / 50, vmin=low, vmax=high)}
    ticks = [0, values.shape[2] - 1]
    labels = [f"{int(view.positions[tick]):,}" for tick in ticks]
    for place, head in enumerate(shown):
        axes = drawn.add_subplot(grid[place // columns, place % columns])
        image = axes.imshow(values[place], cmap=colours("RdBu_r" if signed else "viridis"), **scale)
        axes.set_title(f"head {head}", fontsize=9, fontweight="normal")
        axes.grid(visible=False)
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.tick_params(length=2, labelsize=8)
        if place % columns == 0:
            axes.set_ylabel("query i", fontsize=9)
        if place // columns == rows - 1:
            axes.set_xlabel("key j", fontsize=9)
    return image


def _lines(axes: Any, x: np.ndarray, heads: np.ndarray, shown: list[int], **style: Any) -> None:
    for place, head in enumerate(shown):
        y = np.where(np.isfinite(heads[head]), heads[head], np.nan)
        axes.plot(x, y, color=COLOURS[place % len(COLOURS)], label=f"head {head}", linewidth=1.5, **style)


def _second(axes: Any, view: BiasView, shown: list[int]) -> None:
    distances = view.distances.numpy()
    if view.queries:
        for place, (query, (at, bias)) in enumerate(view.queries.items()):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(at.numpy() + 1, bias[shown[0]].numpy(), color=colour, label=f"i = {query:,}", linewidth=1.6)
        axes.set_xscale("log", base=10)
        axes.legend(loc="best", fontsize=8)
        axes.set(xlabel="distance + 1 (tokens, log scale)", title=f"Head {shown[0]}, by the query's position")
    elif view.counted is not None:
        _lines(axes, distances, view.counted.numpy(), shown)
        axes.plot(distances, distances + 1, color="#98a2b3", linestyle=(0, (4, 3)), linewidth=1.2)
        axes.set_ylim(0, float(view.counted.max()) * 1.1)
        axes.set(xlabel="distance i - j (tokens)", ylabel="position", title="Positions counted (dashed: every token)")
    elif view.buckets is not None:
        axes.plot(distances, view.buckets.numpy(), color="#101828", drawstyle="steps-mid", linewidth=1.6)
        axes.set(xlabel="distance i - j (tokens)", ylabel="row of the table", title="Distances that share a row")
