"""DeBERTa's disentangled attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RelativeScore


@dataclass(frozen=True)
class DebertaConfig(EncodingConfig):
    """Options of ``deberta``."""

    name = "deberta"
    position_buckets: int = integer(256, low=4, high=4096, help="buckets to each side")
    max_relative_positions: int = integer(
        512, low=4, high=2**20, help="distance in tokens where the last bucket starts"
    )

    def check(self) -> Sequence[str]:
        if self.max_relative_positions - 1 <= self.position_buckets // 2:
            return [
                f"max_relative_positions={self.max_relative_positions} must exceed position_buckets / 2 + 1 = "
                f"{self.position_buckets // 2 + 1}, the distances that have a bucket each"
            ]
        return ()


@register_encoding
class Deberta(RelativeScore[DebertaConfig]):
    """DeBERTa: ``score = (q_i . k_j + q_i . kr[b(i - j)] + k_j . qr[b(i - j)]) / sqrt(d)``, ``b`` a log bucket.

    Content keeps its scale ``1 / sqrt(d)`` (DeBERTa itself takes ``1 / sqrt(3 d)``, which would change a pretrained
    model), and so do the two other terms. Buckets are those of DeBERTa-v2. Tables ``position_key`` and
    ``position_query`` ``[h, n, d]`` hold what DeBERTa projects from its relative embeddings, ``n`` twice
    ``position_buckets`` (once for causal attention, where no distance is negative). They see queries and keys before
    any rotation. Zero at the start: an exact identity on top of the native encoding. Causal and bidirectional.

    Source: He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2020, arXiv 2006.03654.
    """

    Config = DebertaConfig
    zero_is_silent = True
    per_head = ("position_key", "position_query")
    info = EncodingInfo(
        title="DeBERTa's disentangled attention",
        formula="(q_i . k_j + q_i . kr[b(i - j)] + k_j . qr[b(i - j)]) / sqrt(d)",
        paper="He et al. 2020, arXiv 2006.03654",
        identity="on top of the native encoding, at the start (zero tables)",
    )

    def __init__(self, config: DebertaConfig, host: HostShape) -> None:
        super().__init__(config, host)
        rows = config.position_buckets * (1 if host.causal else 2)
        self.position_key = nn.Parameter(torch.zeros(host.num_heads, rows, host.head_dim))
        self.position_query = nn.Parameter(torch.zeros(host.num_heads, rows, host.head_dim))

    def rows(self, distance: Tensor, *, causal: bool) -> Tensor:
        span = self.config.position_buckets
        bucket = log_bucket(distance, span, self.config.max_relative_positions)
        return bucket.clamp(0, span - 1) if self.host.causal else (bucket + span).clamp(0, 2 * span - 1)

    def query_table(self, distance: Tensor | None) -> Tensor:
        return self.position_key

    def key_table(self) -> Tensor:
        return self.position_query

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native


def log_bucket(distance: Tensor, buckets: int, furthest: int) -> Tensor:
    """Bucket of ``i - j``, odd in the distance: int64, same shape. One each up to ``buckets / 2``, then logarithmic."""
    middle = buckets // 2
    size = distance.abs()
    most = torch.tensor((furthest - 1) / middle, dtype=torch.float32, device="cpu").log()  # rounded as in DeBERTa-v2
    ratio = torch.log(size.clamp_min(middle).float() / middle) / most
    far = torch.ceil(ratio * (middle - 1)).long() + middle
    return torch.where(size <= middle, distance, far * distance.sign())
