"""KERPLE: a logarithmic or power penalty on distance, with learned strength and shape per head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, choice
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape

SEED = 20220520
START = {"log": (2.0, 1.0), "power": (2.0, 2.0)}
"""Upper ends of the uniform distributions that ``r1`` and ``r2`` start from, as in the authors' code."""
HIGHEST = {"log": None, "power": 2.0}
"""Largest ``r2`` for which the kernel is conditionally positive definite."""


@dataclass(frozen=True)
class KerpleConfig(EncodingConfig):
    """Options of ``kerple``."""

    name = "kerple"
    variant: str = choice("log", ("log", "power"), help="shape of the penalty: logarithm or power of the distance")


@register_encoding
class Kerple(BiasEncoding[KerpleConfig]):
    """KERPLE: ``b[h, i, j] = -r1 ln(1 + r2 |i - j|)`` (``log``) or ``-r1 |i - j|^r2`` (``power``), ``r1, r2 >= 0``.

    Learned per head and layer: ``r1 [h]`` and ``r2 [h]``; ``r2 <= 2`` for ``power``. The bounds are applied to the
    values in use while gradients pass unchanged, so a parameter that was pushed past its bound comes back. Causal, and
    symmetric for encoders.

    Start: ``r1 = 0`` with the native encoding kept, an exact identity. In its place ``r1`` is uniform in (0, 2) and
    ``r2`` in (0, 1) for ``log``, (0, 2) for ``power``, as in the authors' code, the same in every run and layer.

    Source: Chi, Fan, Ramadge, Rudnicky, "KERPLE: Kernelized Relative Positional Embedding for Length Extrapolation",
    2022, arXiv 2205.09921.
    """

    Config = KerpleConfig
    zero_is_silent = True
    info = EncodingInfo(
        title="KERPLE, kernelized relative bias",
        formula="b[h,i,j] = -r1 ln(1 + r2 |i - j|)  or  -r1 |i - j|^r2",
        paper="Chi, Fan, Ramadge, Rudnicky 2022, arXiv 2205.09921",
        identity="on top of the native encoding, at the start (r1 = 0)",
    )

    def __init__(self, config: KerpleConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.r1 = nn.Parameter(torch.zeros(host.num_heads))
        self.r2 = nn.Parameter(torch.ones(host.num_heads))

    @torch.no_grad()
    def start(self, *, keeps_native: bool) -> None:
        generator = torch.Generator().manual_seed(SEED)
        for parameter, high in zip((self.r1, self.r2), START[self.config.variant], strict=True):
            parameter.copy_(torch.rand(len(parameter), generator=generator) * high)
        if keeps_native:
            self.r1.zero_()

    def speaking(self) -> list[nn.Parameter]:
        return [self.r1]

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        wide = torch.float64 if self.r1.dtype == torch.float64 else torch.float32
        distance = prepared.abs().to(wide)
        r1 = _bounded(self.r1.to(distance.device, wide), None).view(-1, *[1] * distance.dim())
        r2 = _bounded(self.r2.to(distance.device, wide), HIGHEST[self.config.variant]).view(r1.shape)
        if self.config.variant == "log":
            return -r1 * torch.log1p(r2 * distance)
        power = torch.exp(r2 * distance.clamp_min(1).log())  # 0^r2 has no gradient
        return -r1 * power.masked_fill(distance == 0, 0.0)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native


def _bounded(value: Tensor, high: float | None) -> Tensor:
    """Clamped to ``[0, high]``, with the gradient of the value itself."""
    return value + (value.clamp(0.0, high) - value).detach()
