"""Pictures of piecewise rotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..plots import COLOURS, figure, save, thousands
from ..views import PiecewiseView
from .common import colours, gaps, titled


def draw_pieces(view: PiecewiseView, title: str, path: str | Path) -> Path:
    """Left: effective distance against distance, gaps where masked. Right: by query and key, grey where masked."""
    with figure(12.5, 5.0, ncols=2, width_ratios=[1.25, 1]) as (drawn, (left, right)):
        x, y = view.distances.numpy(), view.effective.numpy()
        left.plot(x, x, color="#98a2b3", linewidth=3.0, label="RoPE")
        left.plot(x, y, color=COLOURS[0], linewidth=1.8, marker=".", markersize=3, label="patched")
        for low, high in gaps(x, np.isnan(y)):
            left.axvspan(low, high, color="#e4e7ec", zorder=0, label="masked")
        left.axhline(view.trained, color="#98a2b3", linestyle=(0, (4, 3)), linewidth=1.1)
        left.annotate(
            f"trained: {thousands(view.trained)}",
            (0.0, view.trained),
            xycoords=("axes fraction", "data"),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8.5,
            color="#667085",
        )
        left.legend(loc="upper left", bbox_to_anchor=(0.0, 0.92))
        about = f"Effective distance from query {int(x[-1]):,}"
        left.set(xlabel="distance i - j (tokens)", ylabel="effective distance (tokens)", title=about)
        first, last = int(view.positions[0]), int(view.positions[-1])
        image = right.imshow(
            view.matrix.numpy(), cmap=colours("viridis"), extent=(first, last, last, first), interpolation="nearest"
        )
        right.grid(visible=False)
        right.set(xlabel="key j", ylabel="query i", title="Effective distance (grey: masked)")
        bar = drawn.colorbar(image, ax=right, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        bar.ax.grid(visible=False)
        drawn.suptitle(titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)
