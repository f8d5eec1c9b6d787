"""ReRoPE and its leaky variant: distances beyond a window are held, or grow more slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, Piece, PiecewiseEncoding


@dataclass(frozen=True)
class ReropeConfig(EncodingConfig):
    """Options of ``rerope``."""

    name = "rerope"
    window: int | None = integer(
        None, low=1, high=2**24, optional=True, help="distances below this stay as they are (w); None: half of L"
    )
    leak: float | None = number(
        None, low=1.0, high=1e6, optional=True, help="leaky: tokens per unit of distance beyond w (k); None: held at w"
    )


@register_encoding
class Rerope(PiecewiseEncoding[ReropeConfig]):
    """ReRoPE: RoPE at distance ``min(i - j, w)``; leaky: ``w + (i - j - w) / k`` beyond ``w``.

    Plain ReRoPE reaches any length, leaky ``(L - w) k + w`` tokens, without training. Exact identity for texts up to
    ``w`` tokens. Causal only; a shift of all positions changes nothing.

    Source: Su Jianlin, "Rectified Rotary Position Embeddings", 2023, github.com/bojone/rerope.
    """

    Config = ReropeConfig
    info = EncodingInfo(
        title="ReRoPE (and leaky ReRoPE)",
        formula="min(i - j, w), or w + (i - j - w) / k beyond w",
        paper="Su 2023, github.com/bojone/rerope",
        bidirectional=False,
        identity="up to w tokens",
    )

    @property
    def window(self) -> int:
        """``w`` in tokens."""
        return self.config.window or max(1, self.host.max_positions // 2)

    def pieces(self) -> list[Piece]:
        w, k = self.window, self.config.leak
        if k is None:
            far = Piece(low=w, query=lambda i: torch.full_like(i, w), key=torch.zeros_like)
        else:
            far = Piece(low=w, query=lambda i: (i.double() - w) / k + w, key=lambda j: j.double() / k)
        return [Piece(high=w), far]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return (config.window or host.max_positions // 2) >= host.max_positions or config.leak == 1.0
