"""Positions from a recurrence over neighbouring tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import EncodingConfig, integer
from ..registry import register_encoding
from ..sites import EncodingInfo, HostShape, LocalInput


@dataclass(frozen=True)
class RecurrentConfig(EncodingConfig):
    """Options of ``recurrent``."""

    name = "recurrent"
    window: int = integer(7, low=2, high=64, help="tokens that the recurrence reads, the token itself included")
    hidden: int = integer(64, low=1, high=4096, help="size of the recurrent state")


@register_encoding
class Recurrent(LocalInput[RecurrentConfig]):
    """A local recurrence: ``x_i + alpha W h_i`` with ``h_i`` the last state of a GRU over the last ``window`` tokens.

    ``h_i = GRU(z_(i-window+1), ..., z_i)`` from the zero state, ``z = x / sqrt(mean(x^2) + 1e-6)``, with the order of
    gates and the two biases of ``torch.nn.GRU``; a window that starts later (the text begins, or padding) starts from
    the zero state. What enters the gates is computed once per token, so a token costs ``4 H D + 3 window H^2``
    multiplications (``H = hidden``, ``D = hidden_size``). Encoders run a second GRU from the ``window - 1``-th token
    after a token back to it, and ``W`` reads both states.

    Learned: ``weight_ih [s, 3H, D]``, ``weight_hh [s, 3H, H]``, ``bias_ih [s, 3H]``, ``bias_hh [s, 3H]``,
    ``out [D, s H]`` (``W``; ``s`` = 1, encoders 2), uniform at the start, the same every time; and ``gate``
    (``alpha``), zero at the start: an exact identity on top of the native encoding. On encoders it changes the output
    of the embedding block, and the position table is removed unless ``"native"`` is kept. In decoding the embeddings
    of the last ``window - 1`` tokens are kept beside the cache.

    Source: Wang, Ma, Liu, Tang, "R-Transformer: Recurrent Neural Network Enhanced Transformer", 2019, arXiv 1907.05572
    (which has a residual recurrence in every layer).
    """

    Config = RecurrentConfig
    info = EncodingInfo(
        title="local recurrence",
        formula="x_i + alpha W GRU(x_(i-window+1), ..., x_i)",
        paper="Wang, Ma, Liu, Tang 2019, arXiv 1907.05572",
        identity="on top of the native encoding, at the start (alpha = 0)",
    )

    def __init__(self, config: RecurrentConfig, host: HostShape) -> None:
        super().__init__(config, host)
        ways, width, state = 1 if host.causal else 2, host.hidden_size, config.hidden
        self.weight_ih = nn.Parameter(torch.zeros(ways, 3 * state, width))
        self.weight_hh = nn.Parameter(torch.zeros(ways, 3 * state, state))
        self.bias_ih = nn.Parameter(torch.zeros(ways, 3 * state))
        self.bias_hh = nn.Parameter(torch.zeros(ways, 3 * state))
        self.out = nn.Parameter(torch.zeros(width, ways * state))
        self.gate = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def fit(self, target: Tensor | None, *, keeps_native: bool, embedding_rms: float) -> None:
        generator = torch.Generator().manual_seed(0)
        state, width = self.config.hidden, self.host.hidden_size
        for parameter in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.out):
            # the input has width numbers of size 1, whatever the size of the state
            bound = 1 / math.sqrt(width if parameter is self.weight_ih else state)
            values = torch.rand(parameter.shape, generator=generator, device="cpu") * 2 * bound - bound
            parameter.copy_(values)
        self.gate.zero_()

    @property
    def reach(self) -> int:
        return self.config.window - 1

    def mix(self, states: Tensor, near: Tensor) -> Tensor:
        states = states.to(self.out.dtype)
        wide = states if states.dtype == torch.float64 else states.float()
        states = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(states.dtype)
        window = self.config.window
        found = [self._read(states, near, 0, range(window))]
        if not self.host.causal:
            found.append(self._read(states, near, 1, range(2 * window - 2, window - 2, -1)))
        return self.gate * torch.nn.functional.linear(torch.cat(found, dim=-1), self.out)

    def _read(self, states: Tensor, near: Tensor, way: int, columns: range) -> Tensor:
        """``[b, q, hidden]``: the state after the tokens in these columns of the window, in this order."""
        length = near.shape[1]
        gates = torch.nn.functional.linear(states, self.weight_ih[way], self.bias_ih[way])
        h = gates.new_zeros(states.shape[0], length, self.config.hidden)
        for column in columns:
            r, z, n = gates[:, column : column + length].chunk(3, dim=-1)
            again = torch.nn.functional.linear(h, self.weight_hh[way], self.bias_hh[way])
            r_again, z_again, n_again = again.chunk(3, dim=-1)
            keep = torch.sigmoid(z + z_again)
            new = torch.tanh(n + torch.sigmoid(r + r_again) * n_again)
            h = torch.where(near[..., column, None], new + keep * (h - new), h)
        return h

    @classmethod
    def identity(cls, config: Any, *, keeps_native: bool, host: HostShape) -> bool:
        return keeps_native
