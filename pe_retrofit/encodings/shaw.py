"""Shaw's relative position representations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, flag, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RelativeScore


@dataclass(frozen=True)
class ShawConfig(EncodingConfig):
    """Options of ``shaw``."""

    name = "shaw"
    max_distance: int = integer(16, low=1, high=2**16, help="clipping distance k in tokens")
    values: bool = flag(False, help="relative vectors for the values too (runs on the blockwise kernel)")


@register_encoding
class Shaw(RelativeScore[ShawConfig]):
    """Shaw: ``score = q_i . (k_j + aK[clip(i - j, -k, k)]) / sqrt(d)``; optionally values ``v_j + aV[clip(i - j)]``.

    Tables ``keys [n, d]`` and ``values [n, d]``, shared by the heads of a layer, with ``n = 2k + 1`` rows (``k + 1``
    for causal attention), ``k = 16``. They see queries before any rotation. Zero at the start: an exact identity on top
    of the native encoding. Causal and bidirectional.

    Source: Shaw, Uszkoreit, Vaswani, "Self-Attention with Relative Position Representations", 2018, arXiv 1803.02155.
    """

    Config = ShawConfig
    zero_is_silent = True
    per_head = ()
    info = EncodingInfo(
        title="Shaw's relative position representations",
        formula="q_i . (k_j + aK[clip(i - j)]) / sqrt(d), optionally values v_j + aV[clip(i - j)]",
        paper="Shaw, Uszkoreit, Vaswani 2018, arXiv 1803.02155",
        identity="on top of the native encoding, at the start (zero tables)",
    )

    def __init__(self, config: ShawConfig, host: HostShape) -> None:
        super().__init__(config, host)
        rows = config.max_distance + 1 if host.causal else 2 * config.max_distance + 1
        self.keys = nn.Parameter(torch.zeros(rows, host.head_dim))
        if config.values:
            self.values = nn.Parameter(torch.zeros(rows, host.head_dim))

    @property
    def has_values(self) -> bool:  # type: ignore[override]
        """Whether values get relative vectors."""
        return self.config.values

    def rows(self, distance: Tensor, *, causal: bool) -> Tensor:
        k = self.config.max_distance
        return distance.clamp(0, k) if self.host.causal else distance.clamp(-k, k) + k

    def query_table(self, distance: Tensor | None) -> Tensor:
        return self.keys[None]

    def value_table(self) -> Tensor | None:
        return self.values[None] if self.config.values else None

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
