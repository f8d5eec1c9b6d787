"""RoPE, for models that have no rotation of their own, or with another base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..config import EncodingConfig, number
from ..errors import UnsupportedError
from ..registry import register_encoding
from ..sites import EncodingInfo, RotationEncoding, default_inv_freq


@dataclass(frozen=True)
class RopeConfig(EncodingConfig):
    """Options of ``rope``."""

    name = "rope"
    theta: float | None = number(
        None, low=1.0, high=1e12, optional=True, help="rotary base; None: the model's own, 10000 without one"
    )
    partial_rotary_factor: float = number(
        1.0, low=0.01, high=1.0, help="fraction of each head that rotates, for models without a rotation"
    )
    gate: float = number(
        1.0, low=0.0, high=1.0, help="factor on all angles, for models without a rotation: 0 is none, 1 is RoPE"
    )


@register_encoding
class Rope(RotationEncoding[RopeConfig]):
    """RoPE: queries and keys turn by ``i theta^(-2m/d)`` in rotate-half layout, ``theta = 10000``.

    On models without a rotation (BERT): inside the attention, in place of the position table, or beside it with
    ``["native", "rope"]``. There ``gate`` scales the angles: with the table kept, ``gate=0`` is an exact identity, from
    which a fade to 1 can start. On a model that rotates, ``rope`` is what it has: a list with it keeps it, and
    ``theta`` alone changes the base, saved as a plain config. Causal and bidirectional.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv 2104.09864.
    """

    Config = RopeConfig
    extends = False
    info = EncodingInfo(
        title="RoPE, rotary position embedding",
        formula="q_i, k_j turned by i theta^(-2m/d), j theta^(-2m/d)",
        paper="Su et al. 2021, arXiv 2104.09864",
        identity="gate = 0 beside a position table",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        if self.config.gate != 1.0 or self.config.partial_rotary_factor != 1.0:
            raise UnsupportedError(
                f"rope with gate={self.config.gate:g} and partial_rotary_factor={self.config.partial_rotary_factor:g} "
                "is for models without a rotation; this model rotates already. Change theta only, or use 'linear' to "
                "slow the rotation down and 'partial_rope' to rotate less."
            )
        theta = rope["rope_theta"] if self.config.theta is None else self.config.theta
        return {**self._keep(rope), "rope_theta": float(theta), "rope_type": "default"}

    def added_inv_freq(self) -> Tensor:
        """float32 ``[n]`` radians per token for a model without a rotation, the gate included."""
        width = int(self.host.head_dim * self.config.partial_rotary_factor) // 2 * 2
        return default_inv_freq(self.config.theta or 10000.0, max(2, width)) * self.config.gate

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: Any) -> bool:
        return keeps_native and config.gate == 0.0
