"""Sinusoidal positions added to the embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, number
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, InputEncoding


@dataclass(frozen=True)
class SinusoidalConfig(EncodingConfig):
    """Options of ``sinusoidal``."""

    name = "sinusoidal"
    base: float = number(10000.0, low=2.0, high=1e9, help="longest wavelength is 2 pi times this, in tokens")
    gate: float | None = number(
        None, low=-1e3, high=1e3, optional=True, help="starting value of alpha; None: chosen from the host (see below)"
    )


@register_encoding
class Sinusoidal(InputEncoding[SinusoidalConfig]):
    """Sinusoids: ``p[i, 2m] = sin(i base^(-2m/D))``, ``p[i, 2m+1] = cos(i base^(-2m/D))``; ``x + alpha p[i] + offset``.

    ``alpha`` (one number) and ``offset [D]`` are learned. Start: with the native encoding kept, ``alpha = 0`` and
    ``offset = 0``, an exact identity; in place of an encoder's position table, both are the least-squares fit to that
    table; in place of a decoder's rotation, ``alpha`` gives ``p`` the root mean square of the token embeddings.

    Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, section 3.5.
    """

    Config = SinusoidalConfig
    info = EncodingInfo(
        title="sinusoidal positions",
        formula="x_i + alpha * (sin, cos)(i * base^(-2m/D)) + offset",
        paper="Vaswani et al. 2017, arXiv 1706.03762",
        relative=False,
        identity="on top of the native encoding, at the start (alpha = 0)",
    )

    def __init__(self, config: SinusoidalConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.gate = nn.Parameter(torch.zeros(1))
        self.offset = nn.Parameter(torch.zeros(host.hidden_size))

    def forward(self, position_ids: Tensor) -> Tensor:
        table = sinusoids(position_ids, self.host.hidden_size, self.config.base)
        return self.gate * table.to(self.gate.dtype) + self.offset

    @torch.no_grad()
    def fit(self, target: Tensor | None, *, keeps_native: bool, embedding_rms: float) -> None:
        alpha = self.config.gate
        if target is not None and not keeps_native:
            rows = target.detach().double()
            table = sinusoids(torch.arange(len(rows), device=rows.device), rows.shape[1], self.config.base).double()
            centred = table - table.mean(0)
            if alpha is None:
                alpha = (centred * (rows - rows.mean(0))).sum().item() / centred.square().sum().item()
            self.offset.copy_((rows - alpha * table).mean(0))
        elif alpha is None:
            alpha = 0.0 if keeps_native else embedding_rms * math.sqrt(2)  # a sinusoid's rms is 1 / sqrt(2)
        self.gate.fill_(alpha)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native and not config.gate


def sinusoids(position_ids: Tensor, dim: int, base: float) -> Tensor:
    """float32 ``[..., dim]``: sine at even, cosine at odd indices, wavelengths from 2 pi to 2 pi base."""
    half = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu")
    inv_freq = torch.pow(float(base), -half / dim).to(position_ids.device, torch.float32)
    angles = position_ids[..., None].float() * inv_freq
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :dim]
