"""Many values from a small table, which is what a bias of positions comes down to."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """``table[:, index]``: from ``[h, n]`` and whole numbers ``[...]`` below ``n`` to ``[h, ...]``.

    Row by row with 32-bit indices, several times as fast on the CPU as indexing with all rows at once.
    """
    flat = index.reshape(-1).int()
    if torch.is_grad_enabled() and table.requires_grad:
        return table.index_select(1, flat).view(-1, *index.shape)
    found = table.new_empty(len(table), len(flat))
    for source, target in zip(table.contiguous(), found, strict=True):
        torch.index_select(source, 0, flat, out=target)
    return found.view(-1, *index.shape)
