"""Temperatures: factors on the attention logits, the same for all queries or growing with the query's position."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogitScale(nn.Module):
    """Factors on ``q . k`` (NoPE's temperatures).

    Args:
        factor: for all queries.
        attn_scale, floor_scale: ``c`` and ``n`` of ``1 + c ln(1 + floor((i + 1) / n))`` for the query at position i;
            none with ``attn_scale=0``.
    """

    def __init__(self, factor: float, attn_scale: float = 0.0, floor_scale: int = 1) -> None:
        super().__init__()
        self.factor = factor
        self.attn_scale = attn_scale
        self.floor_scale = floor_scale

    @property
    def idle(self) -> bool:
        """Whether all factors are 1."""
        return self.factor == 1.0 and not self.attn_scale

    def at(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Factor of each query beside the common one: ``positions.shape``, for int64 positions."""
        steps = torch.div(positions + 1, self.floor_scale, rounding_mode="floor")
        return 1.0 + self.attn_scale * steps.to(dtype).log1p()

    def common(self, strength: float = 1.0) -> float:
        """Factor of all queries; with a strength below 1 closer to 1: ``1 + strength (factor - 1)``."""
        return self.factor if strength == 1.0 else 1.0 + strength * (self.factor - 1.0)

    def scale(self, query: Tensor, positions: Tensor, strength: float = 1.0) -> Tensor:
        """Queries ``[b, h, q, d]`` at positions ``[b or 1, q]`` times their own factors, in their dtype.

        Args:
            strength: how far the factors are from 1: ``1 + strength (factor - 1)``.
        """
        if not self.attn_scale:
            return query
        wide = torch.promote_types(query.dtype, torch.float32)
        factors = self.at(positions, wide)
        if strength != 1.0:
            factors = 1.0 + strength * (factors - 1.0)
        return (query * factors[:, None, :, None]).to(query.dtype)
