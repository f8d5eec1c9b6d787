"""CoPE: positions counted by the content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import Block, EncodingInfo, HostShape, ScoreEncoding


@dataclass(frozen=True)
class CopeConfig(EncodingConfig):
    """Options of ``cope``."""

    name = "cope"
    max_positions: int = integer(64, low=2, high=2**14, help="rows of the table: positions counted at most")


@register_encoding
class Cope(ScoreEncoding[CopeConfig]):
    """CoPE: ``p_ij = sum_(t=j..i) sigmoid(q_i . k_t / sqrt(d))``, capped; ``score += q_i . e[p_ij]``, interpolated.

    Gates count the keys between ``j`` and ``i`` that matter to the query; ``e`` between two whole positions is
    interpolated linearly. As in the authors' code the gates see the scaled logit and ``q_i . e`` is not scaled. Queries
    and keys are taken before any rotation. One table ``weight [max_positions, d]`` per layer, shared by the heads, zero
    at the start: an exact identity on top of the native encoding. Causal only.

    Source: Golovneva, Wang, Weston, Sukhbaatar, "Contextual Position Encoding: Learning to Count What's Important",
    2024, arXiv 2405.18719.
    """

    Config = CopeConfig
    zero_is_silent = True
    per_head = ()
    info = EncodingInfo(
        title="CoPE, contextual positions",
        formula="p_ij = sum_(t=j..i) sigmoid(q_i . k_t / sqrt(d)); score += q_i . e[p_ij]",
        paper="Golovneva et al. 2024, arXiv 2405.18719",
        bidirectional=False,
        identity="on top of the native encoding, at the start (zero table)",
    )

    def __init__(self, config: CopeConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.weight = nn.Parameter(torch.zeros(config.max_positions, host.head_dim))

    def counted(self, block: Block) -> Tensor:
        """``p_ij``, float32 or wider ``[b, h, q, k]``."""
        wide = torch.float64 if block.query.dtype == torch.float64 else torch.float32
        b, h, q, d = block.query.shape
        k = block.key.shape[2]
        folded = block.query.reshape(b, h // block.groups, block.groups * q, d)
        logits = torch.matmul(folded.to(wide), block.key.to(wide).transpose(2, 3)).view(b, h, q, k) * block.scaling
        gates = logits.sigmoid()
        allowed = block.allowed
        if allowed is not None:
            gates = gates.masked_fill(~allowed, 0.0)
        return gates.flip(-1).cumsum(-1).flip(-1).clamp(max=self.config.max_positions - 1)

    def scores(self, block: Block) -> Tensor:
        positions = self.counted(block)
        wide = positions.dtype
        table = torch.matmul(block.query.to(wide), self.weight.to(wide).t())  # [b, h, q, n]
        lower = positions.floor()
        upper = positions.ceil()
        share = positions - lower
        return table.gather(-1, lower.long()) * (1 - share) + table.gather(-1, upper.long()) * share

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
