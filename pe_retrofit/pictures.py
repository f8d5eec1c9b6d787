"""Pictures of encodings, from their :mod:`views <pe_retrofit.views>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .plots import COLOURS, figure, mark, plain_log_ticks, save, thousands
from .views import BiasView, HybridView, InputView, RotationView

View = BiasView | RotationView | InputView | HybridView


def draw(view: View, title: str, path: str | Path) -> Path:
    """Write the picture of a view as PNG.

    Returns:
        The path written.
    """
    if isinstance(view, BiasView):
        return draw_bias(view, title, path)
    if isinstance(view, RotationView):
        return draw_rotation(view, title, path)
    if isinstance(view, HybridView):
        return draw_hybrid(view, title, path)
    return draw_input(view, title, path)


def draw_bias(view: BiasView, title: str, path: str | Path, most: int = 8) -> Path:
    """Left: the matrix of up to ``most`` heads, on one colour scale. Right: bias (and bucket) against distance."""
    heads = view.matrix.shape[0]
    shown = spread(heads, most)
    from matplotlib.colors import SymLogNorm

    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with figure(12.5, 5.2) as (drawn, unused):
        unused.remove()
        grid = drawn.add_gridspec(max(2, rows), columns + 3, width_ratios=[1.0] * columns + [0.14, 1.4, 1.4])
        values = view.matrix[shown].numpy()
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        if low == high:
            low, high = low - 1, high + 1
        signed = low < 0 < high
        limit = max(-low, high)
        scale: dict[str, Any] = {"vmin": -limit, "vmax": limit}
        if not signed:  # heads often differ by orders of magnitude
            scale = {"norm": SymLogNorm(linthresh=max(abs(low), abs(high)) / 50, vmin=low, vmax=high)}
        for place, head in enumerate(shown):
            axes = drawn.add_subplot(grid[place // columns, place % columns])
            image = axes.imshow(values[place], cmap=_colours("RdBu_r" if signed else "viridis"), **scale)
            axes.set_title(f"head {head}", fontsize=9, fontweight="normal")
            axes.grid(visible=False)
            axes.set_xticks([0, values.shape[2] - 1])
            axes.set_yticks([0, values.shape[1] - 1])
            axes.tick_params(length=2, labelsize=8)
            if place % columns == 0:
                axes.set_ylabel("query i", fontsize=9)
            if place // columns == rows - 1:
                axes.set_xlabel("key j", fontsize=9)
        bar = drawn.colorbar(image, cax=drawn.add_subplot(grid[:rows, columns]))
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=8)
        bar.ax.grid(visible=False)
        where = grid[0, columns + 1 :] if view.buckets is not None else grid[:, columns + 1 :]
        axes = drawn.add_subplot(where)
        distances = view.distances.numpy()
        style: dict[str, Any] = {"drawstyle": "steps-mid"} if view.buckets is not None else {}
        for place, head in enumerate(shown):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(distances, view.bias[head].numpy(), color=colour, label=f"head {head}", linewidth=1.5, **style)
        axes.set(xlabel="distance i - j (tokens)", ylabel="added to the attention logit", title="Bias against distance")
        if view.buckets is None:
            axes.legend(ncols=2, loc="best", fontsize=8)
        else:
            axes = drawn.add_subplot(grid[1:, columns + 1 :])
            axes.plot(distances, view.buckets.numpy(), color="#101828", drawstyle="steps-mid", linewidth=1.6)
            axes.set(xlabel="distance i - j (tokens)", ylabel="row of the table", title="Distances that share a row")
        drawn.suptitle(_titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def draw_rotation(view: RotationView, title: str, path: str | Path) -> Path:
    """Left: period of each frequency, stock and after. Right: the logit of equal contents against distance."""
    with figure(12.5, 5.0, ncols=2) as (drawn, (left, right)):
        index = np.arange(len(view.stock.inv_freq))
        curves = {"stock RoPE": view.stock, **view.after}
        longest = max(float(view.stock.periods.max()), *[_longest(t.periods) for t in view.after.values()])
        top = longest * 4
        for place, (label, turning) in enumerate(curves.items()):
            periods = turning.periods.numpy()
            turns = np.isfinite(periods)
            stock = place == 0
            colour = "#98a2b3" if stock else COLOURS[(place - 1) % len(COLOURS)]
            left.plot(
                index[turns],
                periods[turns],
                color=colour,
                marker="o",
                markersize=3.2,
                linewidth=3.2 if stock else 1.6,
                label=label,
                zorder=2 if stock else 3,
            )
            if not turns.all():
                left.plot(index[~turns], np.full((~turns).sum(), top), "x", color=colour, label=f"{label}: not rotated")
        left.set_yscale("log")
        plain_log_ticks(left)
        for label, length, above in _lengths(view):
            left.axhline(length, color="#98a2b3", linestyle=(0, (4, 3)), linewidth=1.1, zorder=1)
            left.annotate(
                label,
                (0.0, length),
                xycoords=("axes fraction", "data"),
                xytext=(5, 4 if above else -4),
                textcoords="offset points",
                va="bottom" if above else "top",
                fontsize=8.5,
                color="#667085",
            )
        left.set(
            xlabel="frequency index m (fast to slow)",
            ylabel="period (tokens per turn)",
            title="One turn of each frequency",
        )
        left.legend(loc="lower right")

        last = max(view.extended, 4 * view.trained)
        distances = sample_distances(last)
        for place, (label, turning) in enumerate(curves.items()):
            stock = place == 0
            x, y = smooth(distances, turning.kernel(distances))
            colour = "#98a2b3" if stock else COLOURS[(place - 1) % len(COLOURS)]
            right.plot(x, y, color=colour, label=label, linewidth=3.0 if stock else 1.6, zorder=2 if stock else 3)
        right.set_xscale("log", base=2)
        ticks = [2.0**n for n in range(0, int(np.log2(last)) + 1, 2)]
        right.set_xticks(ticks, [thousands(t) for t in ticks])
        right.minorticks_off()
        right.set(
            xlabel="distance i - j (tokens, log scale)",
            ylabel="mean of cos(Δθ) * attention factor",
            title="Attention logit of equal contents",
        )
        right.margins(y=0.12)
        mark(right, {label: length for label, length, _ in _lengths(view)}, None)
        right.legend(loc="lower left")
        about = f"model: d = {2 * len(index)}, theta = {view.theta:,.0f}, trained to {view.trained:,} tokens"
        drawn.suptitle(_titled(title, about), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def draw_input(view: InputView, title: str, path: str | Path) -> Path:
    """Left: the vectors. Right: how alike two positions are, against their distance."""
    vectors = view.vectors
    limit = float(vectors.abs().quantile(0.99)) or 1.0
    with figure(12.5, 4.8, ncols=2, width_ratios=[1.5, 1]) as (drawn, (left, right)):
        image = left.imshow(
            vectors.numpy(), aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        left.grid(visible=False)
        left.set(xlabel="dimension of the embedding", ylabel="position (tokens)", title="Vector added at each position")
        bar = drawn.colorbar(image, ax=left, pad=0.015, fraction=0.05)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.grid(visible=False)
        similarity = alike(vectors)
        right.plot(np.arange(len(similarity)), similarity.numpy(), color=COLOURS[0])
        right.axhline(0, color="#98a2b3", linewidth=1)
        right.set(
            xlabel="distance between two positions (tokens)",
            ylabel="cosine similarity (mean)",
            title="How alike positions are",
        )
        drawn.suptitle(_titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def draw_hybrid(view: HybridView, title: str, path: str | Path) -> Path:
    """One box per layer, coloured by what it has."""
    kinds = list(dict.fromkeys(view.layers))
    with figure(12.5, 2.4) as (drawn, axes):
        for place, kind in enumerate(kinds):
            where = [layer for layer, what in enumerate(view.layers) if what == kind]
            axes.bar(where, [1.0] * len(where), width=0.9, color=COLOURS[place % len(COLOURS)], label=kind)
        axes.set(xlabel="layer", yticks=[], ylim=(0, 1), xlim=(-0.6, len(view.layers) - 0.4))
        axes.grid(visible=False)
        axes.legend(ncols=len(kinds), loc="lower left", bbox_to_anchor=(0, 1.0))
        drawn.suptitle(_titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def alike(vectors: torch.Tensor) -> torch.Tensor:
    """``[n]``: mean cosine similarity of all pairs of rows at each distance."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    product = unit @ unit.t()
    return torch.stack([product.diagonal(offset).mean() for offset in range(len(vectors))])


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def sample_distances(last: int, per_octave: int = 24) -> torch.Tensor:
    """Whole distances from 1 to ``last``, evenly spread on a logarithmic axis."""
    exponents = torch.linspace(0, float(np.log2(last)), per_octave * max(1, int(np.log2(last))), dtype=torch.float64)
    return torch.unique(torch.round(2**exponents).long())


def smooth(x: torch.Tensor, y: torch.Tensor, window: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A short moving average, which makes the trend visible where single distances jump."""
    if len(y) < 2 * window:
        return x.numpy(), y.numpy()
    kernel = np.ones(window) / window
    half = window // 2
    return x.numpy(), np.convolve(np.pad(y.numpy(), half, mode="edge"), kernel, mode="valid")


def _lengths(view: RotationView) -> list[tuple[str, int, bool]]:
    """Label, length and whether the label goes above its line."""
    marks = [(f"trained: {thousands(view.trained)}", view.trained, view.extended == view.trained)]
    if view.extended != view.trained:
        marks.append((f"extended: {thousands(view.extended)}", view.extended, True))
    return marks


def _longest(periods: torch.Tensor) -> float:
    turning = periods[torch.isfinite(periods)]
    return float(turning.max()) if len(turning) else 0.0


def _titled(title: str, about: str) -> str:
    return f"{title}\n{about}" if about else title


def _colours(name: str) -> Any:
    """A colour map that leaves masked entries light grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#f2f4f7")
