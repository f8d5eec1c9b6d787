"""What the pictures share."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import torch


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


def titled(title: str, about: str) -> str:
    """Two lines, the second one cut where the picture ends."""
    return "\n".join([title, *textwrap.wrap(about, 120)])


def colours(name: str) -> Any:
    """A colour map that leaves masked entries light grey."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#f2f4f7")


def gaps(x: np.ndarray, masked: np.ndarray) -> list[tuple[float, float]]:
    """Stretches of ``x`` where ``masked``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], masked, [False])).astype(int)))
    return [(float(x[low]), float(x[high - 1])) for low, high in zip(edges[::2], edges[1::2], strict=True)]
