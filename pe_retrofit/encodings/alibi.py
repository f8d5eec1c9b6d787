"""ALiBi: a linear penalty on distance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, choice, flag
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape


@dataclass(frozen=True)
class AlibiConfig(EncodingConfig):
    """Options of ``alibi``."""

    name = "alibi"
    learnable: bool = flag(False, help="train one slope per head, starting from the paper's")
    sides: str = choice(
        "both", ("both", "split"), help="encoders: every head sees both sides, or even heads the left and odd the right"
    )


@register_encoding
class Alibi(BiasEncoding[AlibiConfig]):
    """ALiBi: ``b[h, i, j] = -m_h |i - j|`` with ``m_h = 2^(-8 h / H)``, ``h = 1..H``.

    When ``H`` is not a power of two: the slopes of the power of two below, then every second slope of the one above.
    Causal, and symmetric for encoders; ``sides="split"`` lets even heads look left and odd heads look right only.
    With ``learnable=True`` the slopes are a parameter ``learned_slopes [h]``. Retrofit: replaces the
    native encoding; damage at the first step is large with the paper's slopes.

    Source: Press, Smith, Lewis, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
    Extrapolation", 2021, arXiv 2108.12409.
    """

    Config = AlibiConfig
    info = EncodingInfo(
        title="ALiBi, attention with linear biases",
        formula="b[h,i,j] = -m_h |i - j|,  m_h = 2^(-8h/H)",
        paper="Press, Smith, Lewis 2021, arXiv 2108.12409",
    )

    def __init__(self, config: AlibiConfig, host: HostShape) -> None:
        super().__init__(config, host)
        if config.learnable:
            self.learned_slopes = nn.Parameter(torch.tensor(alibi_slopes(host.num_heads)))

    def all_slopes(self) -> Tensor:
        """float32 (or wider) ``[h]``."""
        if self.config.learnable:
            slopes = self.learned_slopes
            return slopes if slopes.dtype == torch.float64 else slopes.float()
        return torch.tensor(alibi_slopes(self.host.num_heads), dtype=torch.float64)

    def slopes(self) -> Tensor | None:
        return self.all_slopes() if self.host.causal else None

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        return -distance.abs()[..., None].float() if self.config.learnable else None

    @torch.no_grad()
    def take(self, weights: Tensor) -> None:
        self.learned_slopes.copy_(weights[:, 0].clamp_min(0))  # a negative one would look ever farther back

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        distance = prepared
        # slope * distance is exact before the cast to float32
        wide = torch.float32 if distance.device.type == "mps" else torch.float64
        slopes = self.all_slopes().to(device=distance.device, dtype=wide)
        values = -slopes.view(-1, *[1] * distance.dim()) * distance.abs().to(wide)
        if self.config.sides == "split" and not causal:
            side = torch.ones(self.host.num_heads, dtype=distance.dtype, device=distance.device)
            side[1::2] = -1
            values = values.masked_fill(side.view(-1, *[1] * distance.dim()) * distance < 0, -torch.inf)
        keep = self.config.learnable and self.learned_slopes.dtype == torch.float64
        return values if keep else values.float()


def alibi_slopes(num_heads: int) -> list[float]:
    """The paper's slopes for any head count: ``[num_heads]`` floats, steepest first within each series."""

    def series(n: int) -> list[float]:
        return [2.0 ** (-8.0 * h / n) for h in range(1, n + 1)]

    below = 2 ** math.floor(math.log2(num_heads))
    return series(below) + series(2 * below)[0::2][: num_heads - below]
