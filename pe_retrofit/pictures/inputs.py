"""Pictures of vectors that are added to the embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..plots import COLOURS, figure, save
from ..views import InputView
from .common import titled


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
        drawn.suptitle(titled(title, view.note), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#101828")
        return save(drawn, path)


def alike(vectors: torch.Tensor) -> torch.Tensor:
    """``[n]``: mean cosine similarity of all pairs of rows at each distance."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    product = unit @ unit.t()
    return torch.stack([product.diagonal(offset).mean() for offset in range(len(vectors))])
