"""Many values from a small table, which is what a bias of positions comes down to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

PARALLEL = 2**18
"""Numbers to look up from which on several threads share the rows: PyTorch's index_select uses one."""


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
    inference = torch.is_inference_mode_enabled()

    def fill(rows: tuple[Tensor, Tensor]) -> None:
        with torch.inference_mode(inference):  # a mode of each thread's own
            torch.index_select(rows[0], 0, flat, out=rows[1])

    rows = list(zip(table.detach().contiguous(), found, strict=True))
    threads = min(len(rows), torch.get_num_threads())
    if threads == 1 or size < PARALLEL or table.device.type != "cpu":
        for row in rows:
            fill(row)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, rows))
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
