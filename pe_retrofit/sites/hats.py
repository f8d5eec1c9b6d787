"""Piecewise-linear functions: hats, and the ReLU network that equals a weighted sum of them."""

from __future__ import annotations

import torch
from torch import Tensor


def knots(reach: int, count: int, *, both: bool) -> Tensor:
    """At most ``count`` ascending whole distances up to ``reach``: every one while they are few, then logarithmic.

    0 is one of them, and ``reach`` too where there are two.

    Args:
        both: on both sides of 0.
    """
    most = (count - 1) // 2 if both else count - 1
    if most < 2:
        side = torch.tensor(sorted({0, reach} if most else {0}))
        return torch.cat((-side[1:].flip(0), side)) if both else side
    near = next((n for n in range(1 if most == 2 else 2, most) if n * ((reach / n) ** (1 / (most - n)) - 1) >= 1), most)
    far = [near * (reach / near) ** (step / (most - near)) for step in range(1, most - near + 1)]
    side = torch.tensor(sorted({d for d in (*range(near + 1), *map(round, far)) if d <= reach}))
    return torch.cat((-side[1:].flip(0), side)) if both else side


def hats(x: Tensor, at: Tensor) -> Tensor:
    """``[..., k]`` functions of ``x [...]``: each is 1 at its own point of ``at [k]`` (ascending), 0 at all others, and
    linear in between; outside they stay as they are at the nearest end."""
    if len(at) == 1:
        return torch.ones_like(x)[..., None]
    x = x.clamp(at[0], at[-1])
    right = torch.searchsorted(at, x, right=True).clamp(1, len(at) - 1)
    left = right - 1
    share = (x - at[left]) / (at[right] - at[left])
    found = torch.zeros(*x.shape, len(at), dtype=x.dtype, device=x.device)
    found.scatter_(-1, left[..., None], (1 - share)[..., None])
    return found.scatter_(-1, right[..., None], share[..., None])


def hinges(values: Tensor, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Coefficients of ``v + sum_k c_k relu(x - at_k)`` that passes through ``values [h, k]`` at ``at [k]``.

    Each coefficient makes up for the rounding to ``dtype`` of those before it.

    Returns:
        ``c [h, k]``, the last one such that the function is constant after the last point, and ``v [h]``.
    """
    wide = values.double()
    start = wide[:, 0].to(dtype)
    coefficients = torch.zeros_like(wide)
    for k in range(values.shape[1]):
        if k + 1 < values.shape[1]:
            there = start.double() + (coefficients[:, :k] * (at[k + 1] - at[:k])).sum(1)
            wanted = (wide[:, k + 1] - there) / (at[k + 1] - at[k])
        else:
            wanted = -coefficients[:, :k].sum(1)
        coefficients[:, k] = wanted.to(dtype).double()
    return coefficients.to(dtype), start
