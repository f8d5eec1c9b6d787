"""FoPE: every rotary dimension turns by a Fourier series instead of a single frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import EncodingConfig, flag, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, RotationEncoding


@dataclass(frozen=True)
class FopeConfig(EncodingConfig):
    """Options of ``fope``."""

    name = "fope"
    clip: bool = flag(True, help="frequencies that complete no turn within the trained length do not rotate")
    original_max_position_embeddings: int | None = integer(
        None, low=1, high=2**31, optional=True, help="trained length L for clip; none: the model's"
    )


@register_encoding
class Fope(RotationEncoding[FopeConfig], nn.Module):
    """Fourier position embedding: ``cos'_m = sum_w C[w,m] cos(w n)``, ``sin'_m = sum_w S[w,m] sin(w n)`` at position n.

    ``w`` runs over the model's own frequencies (scaled ones too) with a period of at most the trained length,
    ``w >= 2 pi / L``; the dimensions of the others are clipped: ``cos' = 1``, ``sin' = 0``. ``C = I + A`` and
    ``S = I + B`` with learned ``cos_coef = A`` and ``sin_coef = B``, each ``[kept, kept]``, one pair per layer, shared
    by its heads, both zero at the start. Causal and bidirectional, on models that rotate. Retrofit: with ``clip=False``
    an exact identity; with ``clip=True`` the start is the model's rotation without the clipped frequencies. With A or B
    the logits are no function of ``i - j`` alone, as ``cos'^2 + sin'^2`` is not 1.

    The authors' code, made for training from scratch, starts from ``I`` plus Xavier noise of gain 0.3, per head,
    divides each column by its sum and trains none of it; random fixed matrices would destroy a pretrained model, so
    here the series is learned from the identity. It also pads clipped dimensions with ``sin' = 1`` and keeps at most
    ``d / 4`` series; here they do not rotate, which is the paper's formula, and every kept frequency has its series.

    Source: Hua et al., "Fourier Position Embedding: Enhancing Attention's Periodic Extension for Length
    Generalization", 2024, arXiv 2412.17739.

    Args:
        inv_freq: the model's frequencies in radians per token, highest first; None: none is clipped.
        scaling: the model's factor on cos and sin.
    """

    Config = FopeConfig
    extends = False
    info = EncodingInfo(
        title="FoPE, Fourier position embedding",
        formula="cos'_m = sum_w C[w,m] cos(w n), sin'_m = sum_w S[w,m] sin(w n), no rotation where w_m < 2 pi / L",
        paper="Hua et al. 2024, arXiv 2412.17739",
        relative=False,
        identity="clip = false, until it is trained",
    )

    def __init__(
        self, config: FopeConfig, host: HostShape, inv_freq: Sequence[float] | None = None, scaling: float = 1.0
    ) -> None:
        nn.Module.__init__(self)
        RotationEncoding.__init__(self, config, host)
        self.scaling = scaling
        self.kept = host.rotary_dim // 2
        if config.clip and inv_freq is not None:
            self.kept = sum(w >= 2 * math.pi / host.max_positions for w in inv_freq)
        self.cos_coef = nn.Parameter(torch.zeros(self.kept, self.kept))
        self.sin_coef = nn.Parameter(torch.zeros(self.kept, self.kept))

    def forward(self, cos: Tensor, sin: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """From cos and sin ``[b, q, rotary_dim]`` of the model's rotation, laid out as ``(f, f)``, to the series'.

        Args:
            strength: factor on A and B; below 1 what is clipped is left as given.
        """
        with torch.autocast(cos.device.type, enabled=False):
            if strength != 1.0:
                return self._weaker(cos, self.cos_coef, strength), self._weaker(sin, self.sin_coef, strength)
            return self._series(cos, self.cos_coef, self.scaling), self._series(sin, self.sin_coef, 0.0)

    def _weaker(self, waves: Tensor, coefficients: Tensor, strength: float) -> Tensor:
        half = waves.shape[-1] // 2
        wide = torch.promote_types(waves.dtype, torch.float32)
        kept, rest = waves[..., :half].to(wide).split([self.kept, half - self.kept], dim=-1)
        mixed = torch.cat((kept + strength * (kept @ coefficients.to(wide)), rest), dim=-1)
        return torch.cat((mixed, mixed), dim=-1).to(waves.dtype)

    def _series(self, waves: Tensor, coefficients: Tensor, still: float) -> Tensor:
        half = waves.shape[-1] // 2
        wide = torch.promote_types(waves.dtype, torch.float32)
        kept = waves[..., : self.kept].to(wide)
        mixed = functional.pad(kept + kept @ coefficients.to(wide), (0, half - self.kept), value=still)
        return torch.cat((mixed, mixed), dim=-1).to(waves.dtype)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return not config.clip
