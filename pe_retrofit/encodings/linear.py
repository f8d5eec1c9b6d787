"""Position interpolation: positions divided by a factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class LinearConfig(EncodingConfig):
    """Options of ``linear``."""

    name = "linear"
    factor: float = number(low=1.0, high=1024.0, help="extension factor s: positions are divided by it")


@register_encoding
class Linear(RotationEncoding[LinearConfig]):
    """Linear position interpolation: pair ``m`` of dimensions turns by ``p / s * theta^(-2m/d)`` at position ``p``.

    Causal and bidirectional. Identity at ``s = 1``. Needs a short fine-tune to recover quality at any length.

    Source: Chen, Wong, Chen, Tian, "Extending Context Window of Large Language Models via Positional Interpolation",
    2023, arXiv 2306.15595.
    """

    Config = LinearConfig
    info = EncodingInfo(
        title="linear position interpolation",
        formula="angle_m(p) = (p / s) * theta^(-2m/d)",
        paper="Chen et al. 2023, arXiv 2306.15595",
        identity="factor = 1",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._keep(rope), "rope_type": "linear", "factor": float(self.config.factor)}

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.factor == 1.0
