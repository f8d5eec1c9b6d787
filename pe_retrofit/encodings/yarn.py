"""YaRN: interpolation by parts, with a temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class YarnConfig(EncodingConfig):
    """Options of ``yarn``."""

    name = "yarn"
    factor: float = number(low=1.0, high=1024.0, help="extension factor s")
    beta_fast: float = number(32.0, low=0.01, high=1e6, help="rotations over L above which a frequency stays as it is")
    beta_slow: float = number(1.0, low=0.001, high=1e6, help="rotations over L below which it is fully interpolated")
    attention_factor: float | None = number(
        None, low=0.01, high=100.0, optional=True, help="factor on cos and sin; None: 0.1 ln(s) + 1"
    )
    original_max_position_embeddings: int | None = integer(
        None, low=1, high=2**31, optional=True, help="trained length L in tokens; None: the model's own"
    )

    def check(self) -> Sequence[str]:
        if self.beta_fast < self.beta_slow:
            return [f"beta_fast={self.beta_fast:g} must not be below beta_slow={self.beta_slow:g}"]
        return ()


@register_encoding
class Yarn(RotationEncoding[YarnConfig]):
    """YaRN: frequencies that turn often within ``L`` stay, slow ones are divided by ``s``, a ramp joins them.

    ``ramp(m)`` runs from 0 to 1 between the dimensions that make ``beta_fast`` and ``beta_slow`` rotations over ``L``;
    ``inv_freq' = inv_freq * (1 - ramp) + inv_freq / s * ramp``; cos and sin are multiplied by ``0.1 ln(s) + 1``.
    Causal and bidirectional. Identity at ``s = 1``. Works without training; 400 steps at 2e-5 are published.

    Source: Peng, Quesnelle, Fan, Shippole, "YaRN: Efficient Context Window Extension of Large Language Models", 2023,
    arXiv 2309.00071.
    """

    Config = YarnConfig
    info = EncodingInfo(
        title="YaRN",
        formula="inv_freq' = inv_freq (1 - ramp) + inv_freq / s * ramp; cos, sin *= 0.1 ln(s) + 1",
        paper="Peng et al. 2023, arXiv 2309.00071",
        identity="factor = 1",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        new = {
            **self._keep(rope),
            "rope_type": "yarn",
            "factor": float(config.factor),
            "beta_fast": float(config.beta_fast),
            "beta_slow": float(config.beta_slow),
            "original_max_position_embeddings": self.host.max_positions,
        }
        if config.attention_factor is not None:
            new["attention_factor"] = float(config.attention_factor)
        return new

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.factor == 1.0 and config.attention_factor in (None, 1.0)
