"""Llama 3.1's scaling: piecewise by wavelength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class Llama3Config(EncodingConfig):
    """Options of ``llama3``."""

    name = "llama3"
    factor: float = number(low=1.0, high=1024.0, help="extension factor s")
    low_freq_factor: float = number(1.0, low=0.01, high=1e4, help="wavelengths above L / this are divided by s")
    high_freq_factor: float = number(4.0, low=0.01, high=1e4, help="wavelengths below L / this stay")
    original_max_position_embeddings: int | None = integer(
        None, low=1, high=2**31, optional=True, help="trained length L in tokens; None: the model's own"
    )

    def check(self) -> Sequence[str]:
        if self.high_freq_factor <= self.low_freq_factor:
            return [f"high_freq_factor={self.high_freq_factor:g} must exceed low_freq_factor={self.low_freq_factor:g}"]
        return ()


@register_encoding
class Llama3(RotationEncoding[Llama3Config]):
    """Llama 3's scaling: wavelengths above ``L / low`` are stretched by ``s``, those below ``L / high`` stay.

    Between, ``inv_freq' = inv_freq ((1 - t) / s + t)`` with ``t = (L / wavelength - low) / (high - low)``, where
    ``low = low_freq_factor``, ``high = high_freq_factor`` and ``L`` is the trained length. Causal and bidirectional.
    Identity at ``s = 1``.

    Source: Grattafiori et al., "The Llama 3 Herd of Models", 2024, arXiv 2407.21783 (the rule is in the released code).
    """

    Config = Llama3Config
    info = EncodingInfo(
        title="Llama 3 RoPE scaling",
        formula="inv_freq / s above wavelength L / low, inv_freq below L / high, smooth between",
        paper="Grattafiori et al. 2024, arXiv 2407.21783",
        identity="factor = 1",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        return {
            **self._keep(rope),
            "rope_type": "llama3",
            "factor": float(config.factor),
            "low_freq_factor": float(config.low_freq_factor),
            "high_freq_factor": float(config.high_freq_factor),
            "original_max_position_embeddings": self.host.max_positions,
        }

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.factor == 1.0
