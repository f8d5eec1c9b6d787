"""A continuous relative bias: a small network of the logarithm of the distance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import EncodingConfig, choice, integer
from ..registry import register_encoding
from ..sites import BiasEncoding, EncodingInfo, HostShape
from ..sites.hats import hats, hinges, knots

SEED = 20211118
CHUNK = 2**18
"""Numbers at a time through a network, whose hidden layers are recomputed in the backward pass beyond."""


class ScalarNetwork(nn.Module):
    """A multilayer perceptron of one number: ``[...]`` to ``[h, ...]``, float32 or wider.

    Weights ``[out, in]`` and biases are bare parameters, so that tools which look for ``nn.Linear`` (LoRA on all linear
    layers) leave them alone. Zero until :meth:`start`.

    Args:
        widths: of the layers in between, at least one.
        heads: ``h``.
        activation: ``relu`` or ``silu``.
    """

    def __init__(self, widths: list[int], heads: int, activation: str = "relu") -> None:
        super().__init__()
        sizes = [1, *widths, heads]
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(n, m)) for m, n in pairwise(sizes)])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(n)) for n in sizes[1:]])
        self.activation = getattr(nn.functional, activation)

    @torch.no_grad()
    def start(self) -> None:
        """PyTorch's initialisation of linear layers, the same in every run, with a last layer of zeros."""
        generator = torch.Generator().manual_seed(SEED)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            bound = weight.shape[1] ** -0.5
            for parameter in (weight, bias):
                parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
        self.weights[-1].zero_()
        self.biases[-1].zero_()

    @torch.no_grad()
    def interpolate(self, at: Tensor, values: Tensor) -> None:
        """Become the piecewise-linear function through ``values [h, k]`` at ``at [k]``, constant outside.

        For one hidden layer of at least ``k`` units with ReLU. Units that are left over are silent.
        """
        first, last = self.weights
        rounded = at.to(last.dtype).double().unique().cpu()
        k = len(rounded)
        there = values.double().cpu() @ hats(rounded, at.double().cpu()).t()
        coefficients, start = hinges(there, rounded, last.dtype)
        first.fill_(1.0)
        self.biases[0].fill_(1.0)
        self.biases[0][:k] = -rounded.to(self.biases[0])
        last.zero_()
        last[:, :k] = coefficients.to(last.device)
        self.biases[1].copy_(start)

    @property
    def interpolates(self) -> bool:
        """Whether :meth:`interpolate` is possible."""
        return len(self.weights) == 2 and self.activation is nn.functional.relu

    def last(self) -> list[nn.Parameter]:
        """The parameters of the last layer."""
        return [self.weights[-1], self.biases[-1]]

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.float64 if self.weights[0].dtype == torch.float64 else torch.float32
        flat = x.to(wide).reshape(1, -1)
        if flat.shape[1] <= CHUNK or torch.compiler.is_compiling():
            return self._run(flat).view(-1, *x.shape)
        parts = [checkpoint(self._run, part, use_reentrant=False) for part in flat.split(CHUNK, dim=1)]
        return torch.cat(parts, dim=1).view(-1, *x.shape)

    def _run(self, x: Tensor) -> Tensor:
        """``[1, n]`` to ``[h, n]``."""
        wide, hidden = x.dtype, x
        for n, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.addmm(bias.to(x.device, wide)[:, None], weight.to(x.device, wide), hidden)
            if n + 1 < len(self.weights):
                hidden = self.activation(hidden)
        return hidden


@dataclass(frozen=True)
class MlpConfig(EncodingConfig):
    """Options of ``mlp``."""

    name = "mlp"
    width: int = integer(64, low=1, high=4096, help="units of each hidden layer")
    layers: int = integer(2, low=2, high=8, help="linear layers, the last one included")
    activation: str = choice("relu", ("relu", "silu"), help="between the layers: relu as Swin v2, silu as others do")


@register_encoding
class Mlp(BiasEncoding[MlpConfig]):
    """Continuous bias: ``b[h, i, j] = MLP(sign(i - j) ln(1 + |i - j|))_h``, 1 -> 64 -> H with ReLU.

    Swin v2's log-spaced continuous position bias in one dimension, without its bound of 16 and with a bias in the last
    layer; also known as dynamic position bias. One network per layer. Causal; in encoders the sign tells the sides
    apart. The last layer is zero at the start: an exact identity on top of the native encoding; in its place the model
    starts without positions.

    Source: Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", 2021, arXiv 2111.09883.
    """

    Config = MlpConfig
    zero_is_silent = True
    info = EncodingInfo(
        title="continuous bias of the log distance",
        formula="b[h,i,j] = MLP(sign(i - j) ln(1 + |i - j|))_h",
        paper="Liu et al. 2021, arXiv 2111.09883",
        identity="on top of the native encoding, at the start (zero last layer)",
    )

    def __init__(self, config: MlpConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.network = ScalarNetwork([config.width] * (config.layers - 1), host.num_heads, config.activation)
        self._knots: Tensor | None = None

    def start(self, *, keeps_native: bool) -> None:
        self.network.start()

    def speaking(self) -> list[nn.Parameter]:
        return self.network.last()

    def prepare(self, distance: Tensor, *, causal: bool) -> Tensor:
        wide = torch.float32 if distance.device.type == "mps" else torch.float64
        return torch.sign(distance) * torch.log1p(distance.abs().to(wide))

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        return self.network(prepared)

    def open_basis(self, reach: int, *, causal: bool) -> None:
        if self.network.interpolates:
            distance = knots(reach, self.config.width, both=not causal)
            self._knots = self.prepare(distance, causal=causal)

    def basis(self, distance: Tensor, *, causal: bool) -> Tensor | None:
        if self._knots is None:
            return None
        return hats(self.prepare(distance, causal=causal), self._knots).float()

    def take(self, weights: Tensor) -> None:
        assert self._knots is not None
        self.network.interpolate(self._knots, weights)

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
