"""Positions from a convolution over neighbouring tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer
from ..errors import UnsupportedError
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, LocalInput


@dataclass(frozen=True)
class ConvConfig(EncodingConfig):
    """Options of ``conv``."""

    name = "conv"
    kernel_size: int = integer(3, low=2, high=64, help="tokens under the kernel; odd on encoders")


@register_encoding
class Conv(LocalInput[ConvConfig]):
    """Conditional positional encoding: ``x_i + sum_t w[:, t] x_(i + t - l)``, a depthwise convolution over tokens.

    ``w`` is the parameter ``weight [hidden_size, k]`` (``k = kernel_size``), zero at the start: an exact identity on
    top of the native encoding. Decoders: ``l = k - 1``, the taps lie on the token and the ``k - 1`` tokens before it,
    whose embeddings are kept beside the cache in decoding. Encoders: ``l = (k - 1) / 2``, symmetric, ``k`` odd; what is
    convolved is the output of the embedding block, and the position table is removed unless ``"native"`` is kept. A tap
    counts only where the positions up to it are consecutive and its token is no padding. No bias.

    Source: Chu et al., "Conditional Positional Encodings for Vision Transformers", 2021, arXiv 2102.10882.

    Raises:
        UnsupportedError: an even ``kernel_size`` on an encoder.
    """

    Config = ConvConfig
    info = EncodingInfo(
        title="conditional positions, a convolution over tokens (CPE)",
        formula="x_i + sum_t w[:, t] x_(i+t-l),  t = 0 .. kernel_size - 1",
        paper="Chu et al. 2021, arXiv 2102.10882",
        identity="on top of the native encoding, at the start (w = 0)",
    )

    def __init__(self, config: ConvConfig, host: HostShape) -> None:
        super().__init__(config, host)
        if not host.causal and config.kernel_size % 2 == 0:
            raise UnsupportedError(
                f"kernel_size={config.kernel_size} has no middle, which an encoder needs to see as many tokens "
                f"on either side. Use an odd one, such as {config.kernel_size + 1 if config.kernel_size < 64 else 63}."
            )
        self.weight = nn.Parameter(torch.zeros(host.hidden_size, config.kernel_size))

    @property
    def reach(self) -> int:
        return self.config.kernel_size - 1 if self.host.causal else self.config.kernel_size // 2

    def mix(self, states: Tensor, near: Tensor) -> Tensor:
        length, states = near.shape[1], states.to(self.weight.dtype)
        total = states.new_zeros(states.shape[0], length, states.shape[2])
        for tap in range(self.config.kernel_size):
            part = states[:, tap : tap + length] * self.weight[:, tap]
            total = total + part.masked_fill(~near[..., tap, None], 0)
        return total

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
