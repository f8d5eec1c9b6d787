"""Scores of queries and keys: what is added for one text of random queries and keys."""

from __future__ import annotations

from typing import Any

import torch

from ..sites import Block, RelativeScore, ScoreEncoding
from .biases import hide
from .kinds import SEED, BiasView, Shape, fill_zero_parameters, filled_note


@torch.no_grad()
def see_score(module: ScoreEncoding[Any], shape: Shape) -> BiasView:
    """The added score for normal random queries and keys, with what is zero filled in."""
    module.start(keeps_native=False)
    filled = fill_zero_parameters(module, scale=shape.head_dim**-0.5)
    n, causal = shape.length, shape.causal
    block = example(shape)
    matrix = hide(module.scores(block)[0].double(), causal)
    last = n - 1 if causal else n // 2
    distances = torch.arange(last - n + 1, last + 1)
    bias = matrix[:, last, :].index_select(-1, last - distances)
    rows = module.rows(distances, causal=causal) if isinstance(module, RelativeScore) else None
    counted = None
    positions = getattr(module, "counted", None)
    if positions is not None:
        counted = positions(block)[0, :, last].double().index_select(-1, last - distances)
    note = f"one text of random queries and keys, seen from position {last}"
    note += f"; {filled_note(filled)}" if filled else ""
    return BiasView(distances, bias, matrix, torch.arange(n), rows, counted, note=note, what="added score")


def example(shape: Shape) -> Block:
    """A text whose queries and keys are normal random numbers, without a rotation."""
    n = shape.length
    generator = torch.Generator().manual_seed(SEED + 1)  # other numbers than those of the tables
    size = (1, shape.heads, n, shape.head_dim)
    positions = torch.arange(n)[None]
    allowed = torch.ones(1, 1, n, n, dtype=torch.bool)
    return Block(
        query=torch.randn(size, generator=generator),
        key=torch.randn(size, generator=generator),
        query_positions=positions,
        key_positions=positions,
        causal=shape.causal,
        scaling=shape.head_dim**-0.5,
        visible=lambda: allowed.tril() if shape.causal else None,
        first=0,
    )
