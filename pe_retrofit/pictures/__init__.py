"""Pictures of encodings, from their :mod:`views <pe_retrofit.views>`."""

from __future__ import annotations

from pathlib import Path

from ..views import BiasView, HybridView, PiecewiseView, RotationView, View
from .biases import draw_bias
from .common import sample_distances, smooth, spread
from .hybrids import draw_hybrid
from .inputs import alike, draw_input
from .pieces import draw_pieces
from .rotations import draw_rotation

__all__ = ["alike", "draw", "sample_distances", "smooth", "spread"]


def draw(view: View, title: str, path: str | Path) -> Path:
    """Write the picture of a view as PNG.

    Returns:
        The path written.
    """
    if isinstance(view, BiasView):
        return draw_bias(view, title, path)
    if isinstance(view, PiecewiseView):
        return draw_pieces(view, title, path)
    if isinstance(view, RotationView):
        return draw_rotation(view, title, path)
    if isinstance(view, HybridView):
        return draw_hybrid(view, title, path)
    return draw_input(view, title, path)
