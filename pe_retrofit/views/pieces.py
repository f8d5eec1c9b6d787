"""Piecewise rotations: the distance at which each pair is scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites import PiecewiseEncoding
from .kinds import PiecewiseView, Shape

TIMES = 2
"""Trained lengths shown."""

POINTS = 512
"""Distances shown."""


def see_pieces(encoding: PiecewiseEncoding[Any], shape: Shape) -> PiecewiseView:
    """Effective distances up to twice the trained length."""
    last = TIMES * shape.trained - 1
    distances = torch.unique(torch.linspace(0, last, min(POINTS, last + 1)).round().long())
    positions = torch.unique(torch.linspace(0, last, min(shape.length, last + 1)).round().long())
    query = torch.tensor([last])
    effective = effective_distances(encoding, query, query - distances)[0]
    matrix = effective_distances(encoding, positions, positions)
    note = f"trained length L = {shape.trained:,} tokens; one position in {max(1, round(last / len(positions)))}"
    return PiecewiseView(distances, effective, positions, matrix, shape.trained, note)


def effective_distances(encoding: PiecewiseEncoding[Any], queries: Tensor, keys: Tensor) -> Tensor:
    """float64 ``[q, k]`` for positions ``[q]`` and ``[k]``; NaN in the future and where masked."""
    found = torch.full((len(queries), len(keys)), float("nan"), dtype=torch.float64)
    i, j = queries[None], keys[None]
    past = queries[:, None] >= keys[None, :]
    for piece in encoding.pieces():
        at = piece.query(i)[0].double()[:, None] - piece.key(j)[0].double()[None, :]
        found = torch.where(piece.covers(i, j)[0] & past, at, found)
    return found
