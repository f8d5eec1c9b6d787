"""xPos: RoPE whose components decay with the distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EncodingConfig, number
from ..errors import UnsupportedError
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding, default_inv_freq

GROUP = 4.0
"""Units of ``scale_base`` at a time: no factor within a group exceeds ``zeta^-4 = 150``."""


@dataclass(frozen=True)
class XposConfig(EncodingConfig):
    """Options of ``xpos``."""

    name = "xpos"
    scale_base: float | None = number(
        512.0, low=1.0, high=1e12, optional=True, help="tokens over which a component decays by zeta; None: no decay"
    )


@register_encoding
class Xpos(RotationEncoding[XposConfig]):
    """xPos: component ``m`` of RoPE's ``q_i . k_j`` times ``zeta_m^((i - j) / 512)``, ``zeta_m = (2m/d + 0.4) / 1.4``.

    Queries carry ``zeta^(i/512)`` and keys ``zeta^(-j/512)``. Those numbers leave every floating range, so keys are
    cached as they are and both factors are taken from the start of the queries' group of ``4 scale_base`` positions,
    inside the attention. Exact identity with ``scale_base=None`` (1 / scale_base from 0). Causal only: a future key
    would grow.

    Source: Sun et al., "A Length-Extrapolatable Transformer", 2022, arXiv 2212.10554.

    Raises:
        UnsupportedError: the model's rotation is scaled.
    """

    Config = XposConfig
    length_dependent = True
    expressible = False
    info = EncodingInfo(
        title="xPos",
        formula="component m of RoPE's q_i . k_j times zeta_m^((i - j) / 512), zeta_m = (2m/d + 0.4) / 1.4",
        paper="Sun et al. 2022, arXiv 2212.10554",
        bidirectional=False,
        identity="scale_base = None (no decay)",
    )

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._keep(rope), "rope_type": "default"}

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        kind = rope.get("rope_type", "default")
        if kind != "default":
            raise UnsupportedError(f"'xpos' decays plain RoPE, and this model's rotation is of type {kind!r}.")
        return default_inv_freq(rope["rope_theta"], self.host.rotary_dim)

    def groups(self, positions: Tensor) -> Tensor:
        if self.config.scale_base is None:
            return torch.zeros_like(positions)
        group = max(1, round(GROUP * self.config.scale_base))
        return positions.div(group, rounding_mode="floor") * group

    def amplitude(self, positions: Tensor, length: int, *, query: bool) -> Tensor | None:
        if self.config.scale_base is None:
            return None
        half = torch.arange(0, self.host.rotary_dim, 2, dtype=torch.float64, device=positions.device)
        zeta = (half / self.host.rotary_dim + 0.4) / 1.4
        power = (positions - length).double()[..., None] / self.config.scale_base
        return torch.exp(zeta.log() * (power if query else -power))

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return config.scale_base is None
