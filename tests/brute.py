"""The formulas of the papers, in float64 and plain loops: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor


def alibi_slopes(heads: int) -> list[float]:
    """Press et al.: a geometric series from 2^(-8/n) with that ratio; other counts borrow every second of the next."""
    if heads & (heads - 1) == 0:
        first = 2.0 ** (-8.0 / heads)
        return [first ** (n + 1) for n in range(heads)]
    below = 1
    while below * 2 < heads:
        below *= 2
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


def t5_bucket(distance: int, bidirectional: bool, buckets: int, far: int) -> tuple[int, bool]:
    """Bucket of ``i - j`` and whether the distance lies exactly on a border (where floats may fall to either side).

    Raffel et al.: half the buckets are exact, the rest grow logarithmically up to ``far``. Exact arithmetic: bucket
    ``e + n`` holds the distances with ``(far / e)^(n / (m - e)) <= distance / e``.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance < 0 else 0
        distance = abs(distance)
    distance = max(distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance, False
    wide, border = buckets - exact, False
    grown, step = Fraction(distance, exact) ** wide, Fraction(far, exact)
    n = 0
    while n < wide and step**n <= grown:
        border = step**n == grown
        n += 1
    border = border or grown >= step ** (wide - 1)  # the last bucket takes all that is beyond
    return first + min(exact + n - 1, buckets - 1), border and n - 1 < wide


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    bias: Callable[[int, int, int], float],
    allowed: Callable[[int, int, int], bool],
) -> Tensor:
    """``softmax(q k scaling + bias(h, i, j)) v`` over the allowed keys, row by row: ``[b, h, q, d]`` in float64."""
    query, key, value = query.double(), key.double(), value.double()
    b, h, q, _ = query.shape
    groups = h // key.shape[1]
    output = torch.zeros(b, h, q, value.shape[-1], dtype=torch.float64)
    for n in range(b):
        for head in range(h):
            for i in range(q):
                seen = [j for j in range(key.shape[2]) if allowed(n, i, j)]
                if not seen:
                    continue
                rows = key[n, head // groups, seen]
                extra = torch.tensor([bias(head, i, j) for j in seen], dtype=torch.float64)
                weights = (rows @ query[n, head, i] * scaling + extra).softmax(0)
                output[n, head, i] = weights @ value[n, head // groups, seen]
    return output


def plain(theta: float, d: int) -> list[float]:
    """RoPE: ``theta^(-2m/d)``."""
    return [theta ** (-2 * m / d) for m in range(d // 2)]


def linear(theta: float, d: int, s: float) -> list[float]:
    """Position interpolation."""
    return [f / s for f in plain(theta, d)]


def ntk(theta: float, d: int, s: float) -> list[float]:
    """bloc97's base change."""
    return plain(theta * s ** (d / (d - 2)), d)


def dynamic(theta: float, d: int, s: float, trained: int, length: int) -> list[float]:
    """emozilla's growing base."""
    n = max(length, trained)
    return plain(theta * (s * n / trained - (s - 1)) ** (d / (d - 2)), d)


def yarn(theta: float, d: int, s: float, trained: int, fast: float, slow: float) -> list[float]:
    """Peng et al., 3.2: a ramp between the dimensions that turn ``fast`` and ``slow`` times over ``trained``."""

    def dimension(turns: float) -> float:
        return d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), d - 1)
    if low == high:
        high += 0.001
    result = []
    for m, frequency in enumerate(plain(theta, d)):
        ramp = min(max((m - low) / (high - low), 0.0), 1.0)
        result.append(frequency / s * ramp + frequency * (1 - ramp))
    return result


def llama3(theta: float, d: int, s: float, trained: int, low: float, high: float) -> list[float]:
    """Piecewise by wavelength."""
    result = []
    for frequency in plain(theta, d):
        wavelength = 2 * math.pi / frequency
        if wavelength < trained / high:
            result.append(frequency)
        elif wavelength > trained / low:
            result.append(frequency / s)
        else:
            smooth = (trained / wavelength - low) / (high - low)
            result.append((1 - smooth) * frequency / s + smooth * frequency)
    return result


def longrope(theta: float, d: int, factors: Sequence[float]) -> list[float]:
    """One divisor per frequency."""
    return [f / factor for f, factor in zip(plain(theta, d), factors, strict=True)]


def partial(theta: float, d: int, p: float) -> list[float]:
    """p-RoPE: the lowest frequencies are 0."""
    kept = int(p * d // 2)
    return [f if m < kept else 0.0 for m, f in enumerate(plain(theta, d))]


def sinusoids(positions: Sequence[int], dim: int, base: float) -> Tensor:
    """Vaswani et al.: ``[len(positions), dim]``, sine at even and cosine at odd indices."""
    rows = []
    for p in positions:
        row = []
        for c in range(dim):
            angle = p * base ** (-(c - c % 2) / dim)
            row.append(math.cos(angle) if c % 2 else math.sin(angle))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
