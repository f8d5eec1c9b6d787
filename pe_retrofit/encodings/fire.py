"""FIRE: a network of the distance, measured on a scale that grows with the position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer, number
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape
from ..sites.hats import hats, knots
from ..sites.lookup import Lookup
from .mlp import ScalarNetwork

EPSILON = 1e-6
"""Added to the normaliser, as in the paper's listing."""

POINTS = 2**16
"""Of the table of the network in the fast path. The error is at most ``slope / (2 POINTS)``, slope the steepest of the
network per unit of its argument, which runs from 0 to 1."""


@dataclass(frozen=True)
class FireConfig(EncodingConfig):
    """Options of ``fire``."""

    name = "fire"
    width: int = integer(32, low=1, high=4096, help="hidden units of the network")
    c: float = number(0.1, low=1e-6, high=1e6, help="starting value of c, how fast distances saturate")
    length: int = integer(512, low=1, high=2**24, help="starting value of the threshold L0, in tokens")


@register_encoding
class Fire(BiasEncoding[FireConfig]):
    """FIRE: ``b[h, i, j] = MLP(psi(|i - j|) / psi(max(i, j, L0)))_h``, ``psi(x) = ln(1 + c x)``.

    For visible keys of causal attention ``max(i, j)`` is ``i``, the paper's normaliser; with both directions it is the
    position of the later token of the pair, so no length is needed. Learned per layer: the network (1 -> 32 -> H with
    ReLU), ``c = 0.1`` and ``L0 = 512`` (as ``threshold``, a factor on ``length``), both used by their absolute values.
    A function of the distance alone as long as no position exceeds ``L0``; beyond, a shift of all positions changes
    it. The last layer is zero at the start: an exact identity on top of the native encoding; in its place the model
    starts without positions.

    Attention without gradients and in less than float64 looks the network up in a table of :data:`POINTS` entries.

    Source: Li et al., "Functional Interpolation for Relative Positions Improves Long Context Transformers", 2023,
    arXiv 2310.04418.
    """

    Config = FireConfig
    toeplitz = False
    zero_is_silent = True
    info = EncodingInfo(
        title="FIRE, functional interpolation for relative positions",
        formula="b[h,i,j] = MLP(psi(|i - j|) / psi(max(i, j, L0)))_h,  psi(x) = ln(1 + c x)",
        paper="Li et al. 2023, arXiv 2310.04418",
        relative=False,
        identity="on top of the native encoding, at the start (zero last layer)",
    )

    def __init__(self, config: FireConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.network = ScalarNetwork([config.width], host.num_heads)
        self._knots: Tensor | None = None
        self.c = nn.Parameter(torch.full((1,), config.c))
        self.threshold = nn.Parameter(torch.ones(1))

    def start(self, *, keeps_native: bool) -> None:
        self.network.start()

    def speaking(self) -> list[nn.Parameter]:
        return self.network.last()

    @torch.no_grad()
    def open_basis(self, reach: int, *, causal: bool) -> None:
        self.threshold.clamp_(min=(reach + 1) / self.config.length)  # so that up to there the distance alone counts
        distance = knots(reach, self.config.width, both=False)
        self._knots = self._argument(distance)

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        return None if self._knots is None else hats(self._argument(distance), self._knots).float()

    def take(self, weights: Tensor) -> None:
        assert self._knots is not None
        self.network.interpolate(self._knots, weights)

    def _argument(self, distance: Tensor) -> Tensor:
        """What the network sees of distances while no position exceeds ``L0``."""
        start = distance.new_zeros(1, 1)
        return self._psi(distance).double() / self._scale(start, start)[0, 0, 0].double()

    def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        scale = self._scale(query_positions, key_positions)
        return self.network(self._psi(distance) / scale).transpose(0, 1)

    def fast(self, distances: Tensor, *, causal: bool) -> Callable[[Tensor, Tensor], Tensor]:
        if self.c.dtype == torch.float64:
            return super().fast(distances, causal=causal)
        table = Lookup(self.network(torch.linspace(0, 1, POINTS, device=distances.device)))
        psi, low = self._psi(distances) * (POINTS - 1), distances[0]
        scattered = Lookup(psi[None])
        half = psi.new_tensor(0.5)

        def bias(query_positions: Tensor, key_positions: Tensor) -> Tensor:
            # causally, the later token is the query
            scale = self._scale(query_positions, None if causal else key_positions)
            if _consecutive(query_positions) and _consecutive(key_positions):
                # with the queries in reverse order, psi(i - j) is a view of one vector
                rows, keys = query_positions.shape[1], key_positions.shape[1]
                first = int(query_positions[0, -1] - key_positions[0, 0] - low)
                vector = psi[first - rows - keys + 2 : first + 1].flip(0)
                spread = vector.as_strided((1, rows, keys), (0, 1, 1))
                index = torch.addcdiv(half, spread, scale.flip(1)).clamp_max_(POINTS - 1).int().flip(1)
            else:
                distance = query_positions[:, :, None] - (key_positions + low)[:, None, :]
                index = scattered(distance)[0].div_(scale).round_().clamp_max_(POINTS - 1).int()
            return table(index).transpose(0, 1)

        return bias

    def _psi(self, tokens: Tensor) -> Tensor:
        """``ln(1 + |c x|)``, in float32 or wider."""
        wide = torch.float64 if self.c.dtype == torch.float64 else torch.float32
        return torch.log1p((self.c.to(tokens.device, wide) * tokens).abs())

    def _scale(self, query_positions: Tensor, key_positions: Tensor | None) -> Tensor:
        """``psi(max(i, j, L0))``: ``[b, q, k]``, or ``[b, q, 1]`` without keys, which are then no later."""
        wide = torch.float64 if self.c.dtype == torch.float64 else torch.float32
        least = self._psi(self.threshold.to(query_positions.device, wide) * self.config.length)
        rows = torch.maximum(self._psi(query_positions), least) + EPSILON
        if key_positions is None:
            return rows[..., None]
        return torch.maximum(rows[:, :, None], self._psi(key_positions)[:, None, :] + EPSILON)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native


def _consecutive(positions: Tensor) -> bool:
    """Whether positions ``[b, n]`` are one row of successive numbers."""
    return positions.shape[0] == 1 and bool((positions.diff() == 1).all())
