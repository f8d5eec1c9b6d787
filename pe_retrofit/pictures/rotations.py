"""Pictures of rotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..plots import COLOURS, figure, mark, plain_log_ticks, save, thousands
from ..views import RotationView
from .common import sample_distances, smooth, titled


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
            if turning.half_lives is not None:
                lives, dashes = turning.half_lives.numpy(), (0, (2, 1.5))
                left.plot(index, lives, color="#0f9d73", linestyle=dashes, label=f"{label}: tokens to half its weight")
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
        drawn.suptitle(titled(title, about), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def _lengths(view: RotationView) -> list[tuple[str, int, bool]]:
    """Label, length and whether the label goes above its line."""
    marks = [(f"trained: {thousands(view.trained)}", view.trained, view.extended == view.trained)]
    if view.extended != view.trained:
        marks.append((f"extended: {thousands(view.extended)}", view.extended, True))
    return marks


def _longest(periods: torch.Tensor) -> float:
    turning = periods[torch.isfinite(periods)]
    return float(turning.max()) if len(turning) else 0.0
