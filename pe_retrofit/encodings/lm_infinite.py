"""LM-Infinite: the first tokens and a window of the last ones, at distances that are capped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, Piece, PiecewiseEncoding


@dataclass(frozen=True)
class LmInfiniteConfig(EncodingConfig):
    """Options of ``lm_infinite``."""

    name = "lm_infinite"
    sinks: int = integer(10, low=0, high=2**16, help="first tokens that all others attend to (G)")
    window: int | None = integer(
        None, low=1, high=2**24, optional=True, help="last tokens that are attended to, itself included (W); None: L"
    )
    limit: int | None = integer(None, low=1, high=2**24, optional=True, help="largest distance to a sink; None: L")


@register_encoding
class LmInfinite(PiecewiseEncoding[LmInfiniteConfig]):
    """LM-Infinite: token ``i`` attends to ``j`` if ``i - j < W`` or ``j < G``, with RoPE at distance ``min(i - j, L)``.

    The first ``G`` tokens take up the attention that a model puts nowhere (attention sinks). Reads texts of any length
    without training, but what lies between the sinks and the window is gone. Exact identity for texts up to ``W``
    tokens. With :class:`pe_retrofit.streaming.SinkCache` memory is ``O(G + W)``. Causal only.

    Source: Han et al., "LM-Infinite: Zero-Shot Extreme Length Generalization for Large Language Models", 2023,
    arXiv 2308.16137; sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
    arXiv 2309.17453.
    """

    Config = LmInfiniteConfig
    masks = True
    info = EncodingInfo(
        title="LM-Infinite (attention sinks and a window)",
        formula="min(i - j, L) for i - j < W or j < G; else masked",
        paper="Han et al. 2023, arXiv 2308.16137; Xiao et al. 2023, arXiv 2309.17453",
        bidirectional=False,
        relative=False,
        identity="up to W tokens",
    )

    @property
    def window(self) -> int:
        """``W`` in tokens."""
        return self.config.window or self.host.max_positions

    @property
    def limit(self) -> int:
        """The largest distance."""
        return self.config.limit or self.host.max_positions

    def pieces(self) -> list[Piece]:
        w, sinks, limit = self.window, self.config.sinks, self.limit
        near = [Piece(high=min(w, limit))]
        held = Piece(query=lambda i: torch.full_like(i, limit), key=torch.zeros_like)
        if limit < w:
            near.append(replace(held, low=limit, high=w))
        if not sinks:
            return near
        if w < limit:
            near.append(Piece(low=w, high=limit, before=sinks))
        return [*near, replace(held, low=max(w, limit), before=sinks)]

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return min(config.window or host.max_positions, config.limit or host.max_positions) >= host.max_positions
