"""Dual chunk attention: positions within chunks, between neighbours, and between distant chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, Piece, PiecewiseEncoding


@dataclass(frozen=True)
class DualChunkConfig(EncodingConfig):
    """Options of ``dual_chunk``."""

    name = "dual_chunk"
    chunk: int | None = integer(
        None, low=1, high=2**24, optional=True, help="chunk size s in tokens; None: three quarters of c"
    )
    context: int | None = integer(
        None, low=2, high=2**24, optional=True, help="window c of positions in use, in tokens; None: L"
    )

    def check(self) -> Sequence[str]:
        if self.chunk is not None and self.context is not None and self.chunk >= self.context:
            return [f"chunk={self.chunk} must be smaller than context={self.context}"]
        return ()


@register_encoding
class DualChunk(PiecewiseEncoding[DualChunkConfig]):
    """Dual chunk attention: keys at ``j mod s``; queries at ``i mod s`` within a chunk, at ``min(s + i mod s, c - 1)``
    towards the chunk before, at ``c - 1`` towards earlier chunks.

    No distance reaches ``c``, the trained length; all distances below ``c - s`` between neighbouring chunks are exact.
    Reaches any length without training. Exact identity for texts up to ``s`` tokens. Causal only.

    Source: An et al., "Training-Free Long-Context Scaling of Large Language Models", 2024, arXiv 2402.17463.
    """

    Config = DualChunkConfig
    info = EncodingInfo(
        title="dual chunk attention",
        formula="key j mod s; query i mod s | min(s + i mod s, c - 1) | c - 1 by chunks apart: 0 | 1 | more",
        paper="An et al. 2024, arXiv 2402.17463",
        bidirectional=False,
        relative=False,
        identity="up to s tokens",
    )

    @property
    def context(self) -> int:
        """``c`` in tokens."""
        return self.config.context or max(2, self.host.max_positions)

    @property
    def chunk(self) -> int:
        """``s`` in tokens, smaller than ``c``."""
        return min(self.config.chunk or self.context * 3 // 4, self.context - 1)

    def pieces(self) -> list[Piece]:
        s, c = self.chunk, self.context

        def within(positions: Tensor) -> Tensor:
            return positions.remainder(s)

        return [
            Piece(high=lambda i: within(i) + 1, query=within, key=within),
            Piece(
                low=lambda i: within(i) + 1,
                high=lambda i: within(i) + 1 + s,
                query=lambda i: (within(i) + s).clamp_max(c - 1),
                key=within,
            ),
            Piece(low=lambda i: within(i) + 1 + s, query=lambda i: torch.full_like(i, c - 1), key=within),
        ]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return bool(cls(config, host).chunk >= host.max_positions)
