"""Many values from a small table, which is what a bias of positions comes down to."""

from __future__ import annotations

import torch
from torch import Tensor


def lookup(table: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """``table[:, index]``: from ``[h, n]`` and whole numbers ``[...]`` below ``n`` to ``[h, ...]``.

    Row by row with 32-bit indices, several times as fast on the CPU as indexing with all rows at once.

    Args:
        out: at least as many numbers as there will be, to write to; new memory is as slow as the search itself.
    """
    flat = index.reshape(-1).int()
    if torch.is_grad_enabled() and table.requires_grad:
        return table.index_select(1, flat).view(-1, *index.shape)
    size = len(table) * len(flat)
    found = (table.new_empty(size) if out is None else out.view(-1)[:size]).view(len(table), len(flat))
    for source, target in zip(table.contiguous(), found, strict=True):
        torch.index_select(source, 0, flat, out=target)
    return found.view(-1, *index.shape)


class Lookup:
    """:func:`lookup` in one table, time and again: a result is overwritten by the next one, unless that is larger."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.memory = table.new_empty(0)

    def __call__(self, index: Tensor) -> Tensor:
        size = len(self.table) * index.numel()
        if len(self.memory) < size:
            self.memory = self.table.new_empty(size)
        return lookup(self.table, index, self.memory)
