"""Sandwich: the inner product of sinusoidal positions as a bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape


@dataclass(frozen=True)
class SandwichConfig(EncodingConfig):
    """Options of ``sandwich``."""

    name = "sandwich"
    dim: int = integer(128, low=2, high=4096, help="size D of the sinusoidal positions whose inner product is taken")
    base: float = number(10000.0, low=2.0, high=1e9, help="longest wavelength is 2 pi times this, in tokens")

    def check(self) -> Sequence[str]:
        return [f"dim={self.dim} must be even: a sine and a cosine per frequency"] if self.dim % 2 else ()


@register_encoding
class Sandwich(BiasEncoding[SandwichConfig]):
    """Sandwich: ``b[h, i, j] = g_h / r_h (sum_m cos((i - j) base^(-2m/D)) - D/2)``, ``m = 1..D/2``, ``r_h = 8h/H``.

    ``D = 128``, whatever the size of the heads, and ``base = 10000``. The constant ``-D/2`` makes the bias 0 at
    distance 0 and negative elsewhere; softmax does not see it, attention sinks do. ``gate [h]`` is learned, one per
    head and layer; the paper has none (1). Causal, and symmetric for encoders.

    Start: ``g = 0`` with the native encoding kept, an exact identity; in its place ``g = 1``, the paper's bias.

    Source: Chi, Fan, Rudnicky, Ramadge, "Dissecting Transformer Length Extrapolation via the Lens of Receptive Field
    Analysis", 2022, arXiv 2212.10356.
    """

    Config = SandwichConfig
    zero_is_silent = True
    info = EncodingInfo(
        title="Sandwich, inner product of sinusoids",
        formula="b[h,i,j] = g_h H/(8h) (sum_m cos((i - j) base^(-2m/D)) - D/2)",
        paper="Chi, Fan, Rudnicky, Ramadge 2022, arXiv 2212.10356",
        identity="on top of the native encoding, at the start (gate 0)",
    )

    def __init__(self, config: SandwichConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.gate = nn.Parameter(torch.ones(host.num_heads))

    @torch.no_grad()
    def start(self, *, keeps_native: bool) -> None:
        self.gate.fill_(0.0 if keeps_native else 1.0)

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        wide = torch.float32 if distance.device.type == "mps" else torch.float64  # angles reach thousands of radians
        total = torch.full(distance.shape, -self.config.dim / 2, dtype=wide, device=distance.device)
        for m in range(1, self.config.dim // 2 + 1):
            total += torch.cos(distance.to(wide) * self.config.base ** (-2 * m / self.config.dim))
        return total

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        heads = self.host.num_heads
        wide = torch.float64 if self.gate.dtype == torch.float64 else torch.float32
        ratio = torch.arange(1, heads + 1, device=prepared.device).to(wide) * 8 / heads
        scale = self.gate.to(prepared.device, wide) / ratio
        return scale.view(-1, *[1] * prepared.dim()) * prepared.to(wide)

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor:
        return self.prepare(distance, causal=causal)[..., None].float()

    @torch.no_grad()
    def take(self, weights: Tensor) -> None:
        ratio = torch.arange(1, self.host.num_heads + 1, device=weights.device) * 8 / self.host.num_heads
        self.gate.copy_(weights[:, 0] * ratio)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
