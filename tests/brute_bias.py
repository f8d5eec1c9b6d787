"""Biases of the papers, one pair at a time, in plain Python: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1.0 + math.exp(-x)),
}


def kerple(variant: str, r1: float, r2: float, distance: int) -> float:
    """Chi et al. 2022: ``-r1 log(1 + r2 |i - j|)`` or ``-r1 |i - j|^r2``; parameters kept in bounds."""
    r1, r2 = max(r1, 0.0), max(r2, 0.0)
    if variant == "log":
        return -r1 * math.log(1.0 + r2 * abs(distance))
    return -r1 * abs(distance) ** min(r2, 2.0) if distance else 0.0


def sandwich(dim: int, base: float, head: int, heads: int, i: int, j: int) -> float:
    """Chi et al. 2022: the inner product of sinusoidal positions over ``8 h / H``, less its value at distance 0."""

    def position(n: int) -> list[float]:
        angles = [n / base ** (2 * m / dim) for m in range(1, dim // 2 + 1)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    product = sum(p * q for p, q in zip(position(i), position(j), strict=True))
    return (product - dim / 2) / (8 * (head + 1) / heads)


def perceptron(
    x: float, weights: Sequence[Sequence[Sequence[float]]], biases: Sequence[Sequence[float]], activation: str
) -> list[float]:
    """A multilayer perceptron of one number, neuron by neuron."""
    values = [x]
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        values = [b + sum(w * v for w, v in zip(row, values, strict=True)) for row, b in zip(weight, bias, strict=True)]
        if n + 1 < len(weights):
            values = [ACTIVATIONS[activation](v) for v in values]
    return values


def log_distance(distance: int) -> float:
    """Liu et al. 2021: ``sign(d) log(1 + |d|)``."""
    return math.copysign(math.log(1 + abs(distance)), distance)


def fire_argument(i: int, j: int, c: float, threshold: float) -> float:
    """Li et al. 2023: ``psi(|i - j|) / psi(max(L0, later))``, ``psi(x) = log(|c x| + 1)``, normaliser plus 1e-6."""
    later = max(i, j)
    return math.log(abs(c * (i - j)) + 1) / (math.log(abs(c * max(later, abs(threshold))) + 1) + 1e-6)


def window(size: int, distance: int) -> float:
    """Beltagy et al. 2020: nothing from ``size`` tokens on."""
    return 0.0 if abs(distance) < size else -math.inf
