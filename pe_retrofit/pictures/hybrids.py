"""Pictures of hybrids."""

from __future__ import annotations

from pathlib import Path

from ..plots import COLOURS, figure, save
from ..views import HybridView
from .common import titled


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
        drawn.suptitle(titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)
