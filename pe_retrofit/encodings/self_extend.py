"""Self-Extend: exact positions near by, grouped ones far away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, Piece, PiecewiseEncoding


@dataclass(frozen=True)
class SelfExtendConfig(EncodingConfig):
    """Options of ``self_extend``."""

    name = "self_extend"
    window: int = integer(1024, low=1, high=2**24, help="distances below this, in tokens, stay as they are (w)")
    group: int = integer(4, low=1, high=4096, help="tokens that share a position beyond (G)")


@register_encoding
class SelfExtend(PiecewiseEncoding[SelfExtendConfig]):
    """Self-Extend: RoPE at distance ``i - j`` if below ``w``, else at ``floor(i/G) - floor(j/G) + w - floor(w/G)``.

    Reaches ``(L - w) G + w`` tokens without training. Exact identity for texts up to ``w`` tokens. ``w = 1024, G = 4``.
    Causal only; shifting all positions by a multiple of G changes nothing, other shifts a little.

    Source: Jin et al., "LLM Maybe LongLM: Self-Extend LLM Context Window Without Tuning", 2024, arXiv 2401.01325.
    """

    Config = SelfExtendConfig
    info = EncodingInfo(
        title="Self-Extend",
        formula="i - j below w, floor(i/G) - floor(j/G) + w - floor(w/G) beyond",
        paper="Jin et al. 2024, arXiv 2401.01325",
        bidirectional=False,
        relative=False,
        identity="up to w tokens",
    )

    def pieces(self) -> list[Piece]:
        w, g = self.config.window, self.config.group
        return [
            Piece(high=w),
            Piece(low=w, query=lambda i: i.div(g, rounding_mode="floor") + w - w // g, key=lambda j: j // g),
        ]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.window >= host.max_positions or config.group == 1
