"""FoX-style decay: how fast the past fades depends on what was read since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig
from ..registry import register_encoding
from ..sites import Block, EncodingInfo, HostShape, ScoreEncoding
from .alibi import alibi_slopes


@dataclass(frozen=True)
class FoxConfig(EncodingConfig):
    """Options of ``fox``: none."""

    name = "fox"


@register_encoding
class Fox(ScoreEncoding[FoxConfig]):
    """FoX-style decay: ``b[h, i, j] = g_h sum_(l=j+1..i) ln f_(h,l)``, ``f_(h,l) = sigmoid(w_h . k_l + c_h)``.

    Every token multiplies the weight of all that came before it by its forget gate ``f``. The Forgetting Transformer
    computes gates from the layer's input; here they come from the unrotated keys, which a cache holds, so that any
    cache carries them. Learned per layer: ``weight`` w ``[h, d]``, ``offset`` c ``[h]`` and ``gate`` g ``[h]``. Start:
    beside the native encoding ``g = 0``, an exact identity; in its place ``g = 1, w = 0`` and ``ln f_h`` the negative
    of ALiBi's slope, so that it starts as ALiBi. Causal only.

    Source: Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025, arXiv 2503.02130.
    """

    Config = FoxConfig
    zero_is_silent = True
    per_head = ("weight", "offset", "gate")
    info = EncodingInfo(
        title="FoX-style forget gates (data-dependent decay)",
        formula="b[h,i,j] = g_h sum_(l=j+1..i) ln sigmoid(w_h . k_l + c_h)",
        paper="Lin et al. 2025, arXiv 2503.02130",
        bidirectional=False,
        identity="on top of the native encoding, at the start (g = 0)",
    )

    def __init__(self, config: FoxConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.weight = nn.Parameter(torch.zeros(host.num_heads, host.head_dim))
        self.offset = nn.Parameter(torch.zeros(host.num_heads))
        self.gate = nn.Parameter(torch.zeros(host.num_heads))

    @torch.no_grad()
    def start(self, *, keeps_native: bool) -> None:
        slopes = torch.tensor(alibi_slopes(self.host.num_heads), dtype=torch.float64)
        self.offset.copy_(-slopes.expm1().log())  # ln sigmoid(c) = -slope
        self.gate.fill_(0.0 if keeps_native else 1.0)

    def speaking(self) -> list[nn.Parameter]:
        return [self.gate]

    def key_bias(self, block: Block) -> Tensor:
        gates = block.per_head(self.weight.to(block.key.dtype)[:, None])[..., 0].double()  # [b, h, k]
        decay = nn.functional.logsigmoid(gates + self.offset.double()[:, None]).cumsum(-1)
        return -decay * self.gate.double()[:, None]

    def scores(self, block: Block) -> Tensor:
        wide = torch.float64 if block.query.dtype == torch.float64 else torch.float32
        bias = self.key_bias(block)
        rows = torch.arange(block.query.shape[2], device=bias.device) + block.first
        return (bias[:, :, None, :] - bias.index_select(-1, rows)[..., None]).to(wide)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
