"""NTK-aware scaling: a larger rotary base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class NtkConfig(EncodingConfig):
    """Options of ``ntk``."""

    name = "ntk"
    factor: float = number(low=1.0, high=1024.0, help="extension factor s")


@register_encoding
class Ntk(RotationEncoding[NtkConfig]):
    """NTK-aware scaled RoPE: ``theta' = theta * s^(d / (d - 2))`` with ``d`` the rotary dimension.

    The highest frequency stays, the lowest is divided by ``s``. Causal and bidirectional. Identity at ``s = 1``.
    Works without training up to about ``s`` times the trained length.

    Source: bloc97, "NTK-Aware Scaled RoPE", 2023 (discussed in YaRN, arXiv 2309.00071, section 3.1).
    """

    Config = NtkConfig
    info = EncodingInfo(
        title="NTK-aware scaled RoPE",
        formula="theta' = theta * s^(d / (d - 2))",
        paper="bloc97 2023; see Peng et al. 2023, arXiv 2309.00071",
        identity="factor = 1",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        d = self.host.rotary_dim
        theta = rope["rope_theta"] * self.config.factor ** (d / (d - 2))
        return {**self._keep(rope), "rope_type": "default", "rope_theta": theta}

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.factor == 1.0
