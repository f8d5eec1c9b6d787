"""Input encodings in float64 and plain loops, from their formulas: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def belongs(positions: Sequence[int], real: Sequence[bool], i: int, j: int) -> bool:
    """Whether token ``j`` counts as a neighbour of token ``i``: it is real, and position follows position between."""
    if not 0 <= j < len(positions) or (j != i and not real[j]):
        return False
    low, high = min(i, j), max(i, j)
    return all(positions[k + 1] == positions[k] + 1 for k in range(low, high))


def conv(x: Tensor, weight: Tensor, first: int, positions: Sequence[int], real: Sequence[bool]) -> Tensor:
    """``x_i + sum_t w[:, t] x_(i + first + t)`` over the neighbours that count: ``[n, D]``."""
    result = x.double().clone()
    for i in range(len(x)):
        for tap in range(weight.shape[1]):
            j = i + first + tap
            if belongs(positions, real, i, j):
                for c in range(x.shape[1]):
                    result[i, c] += weight[c, tap].item() * x[j, c].item()
    return result


def gru_step(x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """One step of a gated recurrent unit, gates in the order reset, update, new."""
    n = len(h)
    new = torch.zeros(n, dtype=torch.float64)
    for c in range(n):

        def gate(k: int, c: int = c) -> tuple[float, float]:
            row = k * n + c
            return float(w_ih[row] @ x + b_ih[row]), float(w_hh[row] @ h + b_hh[row])

        (r, rh), (z, zh), (a, ah) = gate(0), gate(1), gate(2)
        reset, update = 1 / (1 + math.exp(-(r + rh))), 1 / (1 + math.exp(-(z + zh)))
        new[c] = (1 - update) * math.tanh(a + reset * ah) + update * h[c].item()
    return new


def recurrent(
    x: Tensor,
    parameters: dict[str, Tensor],
    window: int,
    positions: Sequence[int],
    real: Sequence[bool],
    *,
    causal: bool,
) -> Tensor:
    """``x_i + gate W h_i`` with ``h_i`` of a GRU over the window, and of a second one from the right: ``[n, D]``."""
    p = {name: value.double() for name, value in parameters.items()}
    z = [row / math.sqrt(sum(v * v for v in row.tolist()) / len(row) + 1e-6) for row in x.double()]
    result = x.double().clone()
    for i in range(len(x)):
        states = []
        for way in range(1 if causal else 2):
            h = torch.zeros(p["weight_hh"].shape[2], dtype=torch.float64)
            for distance in range(window - 1, -1, -1):
                j = i - distance if way == 0 else i + distance
                if belongs(positions, real, i, j):
                    weights = [p[name][way] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                    h = gru_step(z[j], h, *weights)
            states.append(h)
        result[i] += p["gate"] * (p["out"] @ torch.cat(states))
    return result


def shares(positions: Sequence[int], real: Sequence[bool]) -> list[float]:
    """``i / (n - 1)`` where ``n`` counts the real tokens of a text; a text ends where positions stop growing."""
    texts: list[list[int]] = [[]]
    last = None
    owner = []
    for k, position in enumerate(positions):
        if real[k]:
            if last is not None and position <= last:
                texts.append([])
            last = position
            texts[-1].append(k)
        owner.append(len(texts) - 1)
    lengths = [len(text) for text in texts]
    return [p / (lengths[o] - 1) if lengths[o] > 1 else 0.0 for p, o in zip(positions, owner, strict=True)]


def hashed(position: int, seed: int) -> float:
    """A number in (-1, 1) from 32-bit unsigned arithmetic."""

    def mix(v: int) -> int:
        v = (v ^ v >> 16) * 0x21F0AAAD % 2**32
        v = (v ^ v >> 15) * 0x735A2D97 % 2**32
        return v ^ v >> 15

    top = mix((mix(seed) + position) % 2**32) // 2**8
    return (2 * top + 1) / 2**24 - 1


def alternating(values: Sequence[float], width: int, gate: float) -> Tensor:
    """``gate p_i u``, ``u = (1, -1, ...)``: ``[n, width]``."""
    return torch.tensor([[gate * v * (-1) ** c for c in range(width)] for v in values], dtype=torch.float64)
