"""LongRoPE: one scaling factor per frequency, in a short and a long set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EncodingConfig, integer, number, numbers
from ..errors import ConfigError
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class LongropeConfig(EncodingConfig):
    """Options of ``longrope``."""

    name = "longrope"
    factor: float = number(low=1.0, high=1024.0, help="extension factor s, for the attention factor")
    long_factor: tuple[float, ...] | None = numbers(
        low=1e-3, high=1e6, most=4096, help="divisor of each frequency beyond L; None: NTK-like, s^(2m / (d - 2))"
    )
    short_factor: tuple[float, ...] | None = numbers(
        low=1e-3, high=1e6, most=4096, help="divisor of each frequency up to L; None: all 1"
    )
    attention_factor: float | None = number(
        None, low=0.01, high=100.0, optional=True, help="factor on cos and sin; None: sqrt(1 + ln s / ln L)"
    )
    original_max_position_embeddings: int | None = integer(
        None, low=2, high=2**31, optional=True, help="trained length L in tokens; None: the model's own"
    )

    def check(self) -> Sequence[str]:
        sizes = {len(f) for f in (self.long_factor, self.short_factor) if f is not None}
        return ["long_factor and short_factor must have the same length"] if len(sizes) > 1 else ()


@register_encoding
class Longrope(RotationEncoding[LongropeConfig]):
    """LongRoPE: ``inv_freq_m / factor_m``, with ``short_factor`` up to ``L`` tokens and ``long_factor`` beyond.

    cos and sin are multiplied by ``sqrt(1 + ln s / ln L)`` (set ``attention_factor=1`` for an exact identity up to L).
    Query ``i`` uses the short set while ``i < L`` and the long one after, for all keys it sees, so that cached and
    uncached runs agree; transformers switches by the length of the call. Keys are cached unrotated. The factors come
    from the paper's search; without any, the long set defaults to NTK-aware ones.

    Causal only. Config on disk: transformers' own ``rope_type: longrope``.

    Source: Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024, arXiv 2402.13753.

    Raises:
        ConfigError: a factor list has not ``rotary_dim / 2`` entries.
    """

    Config = LongropeConfig
    length_dependent = True
    info = EncodingInfo(
        title="LongRoPE",
        formula="inv_freq_m / factor_m (short up to L, long beyond); cos, sin *= sqrt(1 + ln s / ln L)",
        paper="Ding et al. 2024, arXiv 2402.13753",
        bidirectional=False,
        relative=False,
        identity="up to the trained length, with short_factor 1 and attention_factor 1",
    )

    def __init__(self, config: LongropeConfig, host: HostShape) -> None:
        super().__init__(config, host)
        half, d = host.rotary_dim // 2, host.rotary_dim
        default = [config.factor ** (2 * m / (d - 2)) for m in range(half)]
        self.long = list(config.long_factor or default)
        self.short = list(config.short_factor or [1.0] * half)
        for field, factors in (("long_factor", self.long), ("short_factor", self.short)):
            if len(factors) != half:
                raise ConfigError(
                    f"{field} has {len(factors)} entries; this model rotates {d} dimensions, so it needs {half}."
                )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        return {
            **self._keep(rope),
            "rope_type": "longrope",
            "factor": float(config.factor),
            "long_factor": [float(f) for f in self.long],
            "short_factor": [float(f) for f in self.short],
            "attention_factor": self.attention_factor(),
            "original_max_position_embeddings": self.host.max_positions,
        }

    def attention_factor(self) -> float:
        """Factor on cos and sin."""
        config = self.config
        if config.attention_factor is not None:
            return float(config.attention_factor)
        return math.sqrt(1 + math.log(config.factor) / math.log(self.host.max_positions))

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        factors = self.long if length > self.host.max_positions else self.short
        d = self.host.rotary_dim
        exponent = torch.arange(0, d, 2, dtype=torch.int64, device="cpu").float() / d
        return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * rope["rope_theta"] ** exponent)

    def groups(self, positions: Tensor) -> Tensor:
        trained = self.host.max_positions
        return torch.where(positions < trained, trained, trained + 1)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        same = config.short_factor is None or all(f == 1.0 for f in config.short_factor)
        return same and (config.factor == 1.0 or config.attention_factor == 1.0)
