"""p-RoPE: only the highest frequencies rotate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class PartialRopeConfig(EncodingConfig):
    """Options of ``partial_rope``."""

    name = "partial_rope"
    p: float = number(0.75, low=0.0, high=1.0, help="fraction of frequencies kept, the highest ones; the rest is NoPE")


@register_encoding
class PartialRope(RotationEncoding[PartialRopeConfig]):
    """p-RoPE: the lowest ``1 - p`` of the frequencies are set to 0, so those dimensions carry content only.

    Causal and bidirectional. Identity at ``p = 1``. Where the whole head rotates this is transformers' ``proportional``
    type; a model that rotates a part of the head natively (GPT-NeoX, StableLM) keeps its layout and loses the lowest
    frequencies of that part.

    Source: Barbero et al., "Round and Round We Go! What makes Rotary Positional Encodings useful?", 2024,
    arXiv 2410.06205.
    """

    Config = PartialRopeConfig
    extends = False
    info = EncodingInfo(
        title="p-RoPE (partial RoPE)",
        formula="angle_m(p) = p * theta^(-2m/d) for the highest p of the frequencies, 0 for the rest",
        paper="Barbero et al. 2024, arXiv 2410.06205",
        identity="p = 1",
    )

    def kept(self) -> int:
        """How many frequencies keep rotating."""
        return int(self.config.p * self.host.rotary_dim // 2)

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "rope_theta": rope["rope_theta"],
            "rope_type": "proportional",
            "partial_rotary_factor": float(self.config.p),
        }

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return int(config.p * host.rotary_dim // 2) == host.rotary_dim // 2
