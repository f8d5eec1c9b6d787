"""Sliding window: what is far is not attended to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape


@dataclass(frozen=True)
class WindowConfig(EncodingConfig):
    """Options of ``window``."""

    name = "window"
    size: int = integer(1024, low=1, high=2**24, help="tokens in the window, the query itself included")


@register_encoding
class Window(BiasEncoding[WindowConfig]):
    """Sliding window: ``b[i, j] = 0`` where ``|i - j| < size``, else ``-inf``; nothing is learned.

    Causal: a query sees itself and the ``size - 1`` tokens before it. Encoders: as many on either side. Mostly on top
    of the native encoding, on some layers of a hybrid; in its place the layer knows no order within the window. Layers
    on the Toeplitz kernel cost ``O(L size)``. An exact identity on inputs of at most ``size`` tokens.

    Source: Beltagy, Peters, Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv 2004.05150, section 3.1.
    """

    Config = WindowConfig
    info = EncodingInfo(
        title="sliding window",
        formula="b[i,j] = 0 where |i - j| < size, else -inf",
        paper="Beltagy, Peters, Cohan 2020, arXiv 2004.05150",
        identity="on top of the native encoding, up to size tokens",
    )

    @property
    def reach(self) -> int | None:
        return self.config.size

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        zeros = torch.zeros(prepared.shape, device=prepared.device)
        seen = zeros.masked_fill(prepared.abs() >= self.config.size, -torch.inf)
        return seen.expand(self.host.num_heads, *prepared.shape).clone()

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native and config.size >= host.max_positions
