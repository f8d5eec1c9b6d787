"""T5's bucketed relative bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape


@dataclass(frozen=True)
class T5Config(EncodingConfig):
    """Options of ``t5``."""

    name = "t5"
    num_buckets: int = integer(32, low=4, high=4096, help="rows of the table; encoders use half for each side")
    max_distance: int = integer(128, low=4, high=2**24, help="distance in tokens from which all share the last bucket")

    def check(self) -> Sequence[str]:
        if self.num_buckets % 4:
            return [f"num_buckets={self.num_buckets} must be a multiple of 4, so that the halves are whole"]
        if self.max_distance <= self.num_buckets // 2:
            return [
                f"max_distance={self.max_distance} must exceed num_buckets / 2 = {self.num_buckets // 2}, the "
                "distances that have a bucket each"
            ]
        return ()


@register_encoding
class T5(BiasEncoding[T5Config]):
    """T5 relative bias: ``b[h, i, j] = table[bucket(i - j), h]``.

    Half of the buckets hold one distance each, the other half grow logarithmically up to ``max_distance``; encoders
    split the buckets between the two directions. The logits keep the host's ``1 / sqrt(d)`` (T5 itself has none).
    One table ``weight [num_buckets, h]`` per layer, zero at the start: an exact identity on top of the native encoding.

    Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
    arXiv 1910.10683.
    """

    Config = T5Config
    zero_is_silent = True
    info = EncodingInfo(
        title="T5 bucketed relative bias",
        formula="b[h,i,j] = table[bucket(i - j), h]",
        paper="Raffel et al. 2019, arXiv 1910.10683",
        identity="on top of the native encoding, at the start (zero table)",
    )

    def __init__(self, config: T5Config, host: HostShape) -> None:
        super().__init__(config, host)
        self.weight = nn.Parameter(torch.zeros(config.num_buckets, host.num_heads))

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        config = self.config
        return t5_bucket(distance, not causal, config.num_buckets, config.max_distance)

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        return weight.to(prepared.device).t()[:, prepared]

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor:
        return nn.functional.one_hot(self.prepare(distance, causal=causal), self.config.num_buckets).float()

    @torch.no_grad()
    def take(self, weights: Tensor) -> None:
        self.weight.copy_(weights.t())

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native


def t5_bucket(distance: Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of ``i - j``: int64, same shape. T5 defines it on ``j - i``, hence the signs."""
    offset = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = (distance < 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = distance.clamp_min(0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    large = (exact + (ratio * (num_buckets - exact)).long()).clamp_max(num_buckets - 1)
    return offset + torch.where(distance < exact, distance, large)
