"""Score encodings and piecewise rotations in float64 and plain loops: slow, obvious, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

Logit = Callable[[int, int, int, int], float]
"""The whole logit of batch row n, query head h, query i and key j, both counted from 0."""
Allowed = Callable[[int, int, int], bool]


def attention(
    query: Tensor,
    value: Tensor,
    logit: Logit,
    allowed: Allowed,
    value_at: Callable[[int, int], Tensor] | None = None,
) -> Tensor:
    """``sum_j softmax_j(logit) (v_j + value_at(i, j))`` over the allowed keys: ``[b, h, q, d]`` in float64."""
    b, h, q, d = query.shape
    groups = h // value.shape[1]
    output = torch.zeros(b, h, q, d, dtype=torch.float64)
    for n in range(b):
        for head in range(h):
            for i in range(q):
                seen = [j for j in range(value.shape[2]) if allowed(n, i, j)]
                logits = torch.tensor([float(logit(n, head, i, j)) for j in seen], dtype=torch.float64)
                for j, weight in zip(seen, logits.softmax(0).tolist(), strict=True):
                    vector = value[n, head // groups, j].double()
                    if value_at is not None:
                        vector = vector + value_at(i, j)
                    output[n, head, i] += weight * vector
    return output


def rotation(angle_position: float, inv_freq: Sequence[float], d: int) -> Tensor:
    """The matrix ``R(p) [d, d]`` in the rotate-half layout; dimensions beyond ``2 len(inv_freq)`` stay."""
    matrix = torch.eye(d, dtype=torch.float64)
    half = len(inv_freq)
    for m, frequency in enumerate(inv_freq):
        c, s = math.cos(angle_position * frequency), math.sin(angle_position * frequency)
        matrix[m, m] = matrix[m + half, m + half] = c
        matrix[m, m + half], matrix[m + half, m] = -s, s
    return matrix


def rotated_product(query: Tensor, key: Tensor, effective: float, inv_freq: Sequence[float]) -> float:
    """``(R(i') q) . (R(j') k) = q . R(-(i' - j')) k`` for the effective distance ``i' - j'``."""
    return float(query.double() @ (rotation(-effective, inv_freq, len(query)) @ key.double()))


def self_extend(i: int, j: int, w: int, group: int) -> float:
    """Jin et al., 2024: neighbours exact, the others by groups."""
    if i - j < w:
        return i - j
    return math.floor(i / group) - math.floor(j / group) + w - math.floor(w / group)


def rerope(i: int, j: int, w: int, leak: float | None) -> float:
    """Su, 2023: ``min(i - j, w)``, or growing at the rate 1 / leak beyond."""
    if i - j < w:
        return i - j
    return w if leak is None else w + (i - j - w) / leak


def lm_infinite(i: int, j: int, sinks: int, w: int, limit: int) -> float | None:
    """Han et al., 2023: the Lambda-shaped mask (None: masked), and a ceiling of the distance."""
    if i - j >= w and j >= sinks:
        return None
    return min(i - j, limit)


def dual_chunk(i: int, j: int, s: int, c: int) -> float:
    """An et al., 2024, 2402.17463, section 3."""
    apart = i // s - j // s
    if apart == 0:
        query = i % s
    elif apart == 1:
        query = list(range(s, 2 * s))[i % s]
        query = query if query < c else c - 1
    else:
        query = c - 1
    return query - j % s


def string(i: int, j: int, s: int, w: int) -> float:
    """An et al., 2024, 2410.18745: distances from ``s`` on become ``w`` and more."""
    return i - j if i - j < s else i - j - s + w


def transformer_xl_sinusoid(distance: int, width: int, base: float) -> Tensor:
    """Dai et al., 2019: ``[width]``, all sines, then all cosines."""
    row = []
    for wave in (math.sin, math.cos):
        for m in range(width // 2):
            row.append(wave(distance * base ** (-2 * m / width)))
    return torch.tensor(row, dtype=torch.float64)


def deberta_bucket(distance: int, buckets: int, furthest: int) -> tuple[int, bool]:
    """He et al., 2020, as released for v2: the bucket, and whether the distance lies exactly on a border.

    Exact arithmetic: ``ceil(log(a / m) / log(f / m) (m - 1))`` is the smallest ``n`` with ``(a / m)^(m - 1) <=
    (f / m)^n``, where ``m`` is half the buckets and ``f = furthest - 1``.
    """
    middle = buckets // 2
    size = abs(distance)
    if size <= middle:
        return distance, False
    grown, step = Fraction(size, middle) ** (middle - 1), Fraction(furthest - 1, middle)
    n = 0
    while step**n < grown:
        n += 1
    return (middle + n) * (1 if distance > 0 else -1), step**n == grown


def cope_positions(gates: Sequence[float], most: int) -> list[float]:
    """Golovneva et al., 2024: ``p_j`` for the gates of the keys ``0 .. i`` of one query."""
    return [min(sum(gates[j:]), most - 1) for j in range(len(gates))]


def cope_term(query: Tensor, table: Tensor, position: float) -> float:
    """``q . e[p]``, linear between whole positions."""
    low, high = math.floor(position), math.ceil(position)
    share = position - low
    return float(query.double() @ ((1 - share) * table[low].double() + share * table[high].double()))
