"""Biases: by pair, by distance, and by query where that matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites import BiasEncoding
from .kinds import BiasView, Shape, fill_zero_parameters, filled_note

POINTS = 128
"""Distances at which a query is looked at."""


@torch.no_grad()
def see_bias(module: BiasEncoding[Any], shape: Shape) -> BiasView:
    """A bias as it starts in place of the native encoding, with what is zero filled in."""
    module.start(keeps_native=False)
    filled = fill_zero_parameters(module)
    n, causal = shape.length, shape.causal
    step = 1 if module.reach is None else max(1, -(-2 * module.reach // n))  # what ends is shown to its end
    positions = torch.arange(n) * step
    distances = torch.arange(0 if causal else 1 - n, n) * step
    matrix = module.bias_at(positions[None], positions[None], causal=causal)[0].double()
    matrix = hide(matrix, causal)
    origin = positions[None, -1:]  # the last query, so that every distance has a key
    bias = module.bias_at(origin, origin - distances[None], causal=causal)[0, :, 0].double()
    prepared = module.prepare(distances, causal=causal)
    shared = not prepared.is_floating_point() and prepared.shape == distances.shape
    buckets = prepared if shared and not torch.equal(prepared, distances) else None
    queries = {} if module.toeplitz else _queries(module, shape)
    note = filled_note(filled)
    if step > 1:
        note = f"one position in {step}{'; ' if note else ''}{note}"
    return BiasView(distances, bias, matrix, positions, buckets, None, queries, note)


def hide(matrix: Tensor, causal: bool) -> Tensor:
    """``[h, q, k]`` with NaN where the key lies in the future of a decoder, or is masked."""
    matrix = matrix.masked_fill(torch.isneginf(matrix), float("nan"))
    if not causal:
        return matrix
    return matrix.masked_fill(torch.ones(matrix.shape[1:], dtype=torch.bool).triu(1), float("nan"))


def _queries(module: BiasEncoding[Any], shape: Shape) -> dict[int, tuple[Tensor, Tensor]]:
    """From an eighth of the trained length to four times it."""
    seen = {}
    for place in (shape.trained // 8, shape.trained, 4 * shape.trained):
        place = max(1, place)
        distances = torch.unique(torch.logspace(0, torch.tensor(place).log10().item(), POINTS).round().long() - 1)
        query = torch.tensor([[place]])
        bias = module.bias_at(query, query - distances[None], causal=shape.causal)[0, :, 0].double()
        seen[place] = (distances, bias)
    return seen
