"""Transformer-XL's relative encoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RelativeScore


@dataclass(frozen=True)
class TransformerXlConfig(EncodingConfig):
    """Options of ``transformer_xl``."""

    name = "transformer_xl"
    base: float = number(10000.0, low=2.0, high=1e9, help="longest wavelength is 2 pi times this, in tokens")


@register_encoding
class TransformerXl(RelativeScore[TransformerXlConfig]):
    """Transformer-XL: ``score = ((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d)``.

    ``r`` is the sinusoid of the distance, ``[hidden_size]``: all sines, then all cosines. Learned per layer:
    ``content_bias`` u and ``position_bias`` v ``[h, d]``, ``projection`` W_R ``[h, d, hidden_size]``. All see queries
    and keys before any rotation. With u = 0 and W_R = 0 (the start) it is an exact identity on top of the native
    encoding. Causal and bidirectional. For the paper's segment recurrence see :mod:`pe_retrofit.streaming`.

    Source: Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", 2019,
    arXiv 1901.02860.
    """

    Config = TransformerXlConfig
    zero_is_silent = True
    per_head = ("content_weight", "position_weight", "projection")
    info = EncodingInfo(
        title="Transformer-XL relative encoding",
        formula="((q_i + u) . k_j + (q_i + v) . W_R r_(i-j)) / sqrt(d)",
        paper="Dai et al. 2019, arXiv 1901.02860",
        identity="on top of the native encoding, at the start (u = 0, W_R = 0)",
    )

    def __init__(self, config: TransformerXlConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.content_weight = nn.Parameter(torch.zeros(host.num_heads, host.head_dim))
        self.position_weight = nn.Parameter(torch.zeros(host.num_heads, host.head_dim))
        self.projection = nn.Parameter(torch.zeros(host.num_heads, host.head_dim, host.hidden_size))

    def speaking(self) -> list[nn.Parameter]:
        return [self.content_weight, self.projection]

    def content_bias(self) -> Tensor:
        return self.content_weight

    def query_bias(self) -> Tensor:
        return self.position_weight

    def basis(self, distance: Tensor) -> Tensor:
        return relative_sinusoid(distance, self.host.hidden_size, self.config.base)

    def query_map(self) -> Tensor:
        return self.projection

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native


def relative_sinusoid(distance: Tensor, width: int, base: float) -> Tensor:
    """float32 ``[n, width]`` for distances ``[n]``: sines in the first half, cosines in the second."""
    half = torch.arange(0, width, 2, dtype=torch.float64, device="cpu")
    inv_freq = torch.pow(float(base), -half / width).to(distance.device, torch.float32)
    angles = distance[:, None].float() * inv_freq
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]
