"""Distances in bins, and sums along the diagonals of a block of attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def bin_edges(length: int) -> list[int]:
    """Lower edges of the bins, and the end of the last: 0, 1, 2, 3, 4, 6, 8, 12, ... up to ``length``."""
    edges, step = [0, 1, 2, 3], 4
    while edges[-1] < length:
        edges += [step, step // 2 * 3]
        step *= 2
    return [edge for edge in edges if edge < length] + [length]


def by_bin(values: Tensor, edges: Sequence[int]) -> Tensor:
    """Sums of ``[..., length]`` within the bins: ``[..., len(edges) - 1]``."""
    total = torch.cat((torch.zeros_like(values[..., :1]), values.cumsum(-1)), dim=-1)
    at = torch.tensor(list(edges), device=values.device).clamp(max=values.shape[-1])
    return total[..., at].diff(dim=-1)


def diagonal_sums(block: Tensor, first: int, length: int) -> Tensor:
    """Sums over all pairs of a distance: ``[..., length]`` from a block ``[..., q, k]``.

    Args:
        block: rows are the queries ``first, first + 1, ...``, columns the keys ``0, 1, ...``.
        first: index of the first query.
        length: largest distance plus one; a key ``j`` after its query ``i`` counts for ``|i - j|`` too.
    """
    *heads, q, k = block.shape
    # rows shifted by one against each other: a column then holds one distance
    padded = block.new_zeros(*heads, q, k + q)
    padded[..., :k] = block.flip(-1)
    skewed = padded.flatten(-2)[..., : q * (k + q - 1)].view(*heads, q, k + q - 1)
    sums = skewed.sum(-2)  # column c: distance first - (k - 1) + c
    low = first - (k - 1)
    found = sums.new_zeros(*heads, length)
    ahead = max(0, min(-low, sums.shape[-1]))
    behind = sums[..., ahead:]
    start = max(low, 0)
    found[..., start : start + behind.shape[-1]] += behind[..., : length - start]
    if ahead:
        before = sums[..., :ahead].flip(-1)  # distances 1, 2, ... ahead
        last = 1 - (low + ahead)
        found[..., last : last + ahead] += before[..., : length - last]
    return found
