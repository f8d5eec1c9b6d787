"""Biases that are no weighted sum of given functions: fit their parameters to a table of wanted values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...encodings.kerple import Kerple
from ...sites import BiasEncoding

ITERATIONS = 300
FAR = 16
"""Tables are made for distances up to so many times those seen, with the value at the farthest."""


def imitate(encoding: BiasEncoding[Any], values: Tensor, mass: Tensor, *, causal: bool) -> None:
    """Fit an encoding's parameters to ``values [h, n]`` by least squares, weighted by ``mass [h, n]``.

    A constant per head is free, for softmax does not see it. ``n`` distances ``0 .. n - 1``, or, in both directions,
    ``-(n - 1) / 2 .. (n - 1) / 2``.
    """
    count = values.shape[1]
    reach = count - 1 if causal else (count - 1) // 2
    distance = torch.arange(count) - (0 if causal else reach)
    weight = mass / mass.sum(1, keepdim=True).clamp_min(1e-9) + 1e-4 / count
    weight = weight / weight.sum(1, keepdim=True)
    parameters = list(encoding.parameters())
    kept = [(p.dtype, p.requires_grad) for p in parameters]
    starts = _starts(encoding, values, weight, distance)
    encoding.double()
    try:
        best = min(
            (_descend(encoding, start, values, weight, distance, causal) for start in starts), key=lambda r: r[0]
        )
        with torch.no_grad():
            for parameter, value in zip(encoding.parameters(), best[1], strict=True):
                parameter.copy_(value)
    finally:
        encoding.to(kept[0][0])
        for parameter, (_, trained) in zip(encoding.parameters(), kept, strict=True):
            parameter.requires_grad_(trained)


def spread(encoding: BiasEncoding[Any], weights: Tensor, reach: int, *, causal: bool) -> Tensor:
    """Weights ``[h, f]`` with those of functions that were never active set to the value at the farthest distance."""
    known = torch.arange(reach + 1) if causal else torch.arange(-reach, reach + 1)
    every = torch.arange(FAR * reach) if causal else torch.arange(-FAR * reach, FAR * reach)
    near, far = encoding.basis(known, causal=causal), encoding.basis(every, causal=causal)
    assert near is not None
    assert far is not None
    idle = near.abs().sum(0) == 0
    if not bool(idle.any()):
        return weights
    wanted = weights @ encoding.basis(every.clamp(-reach, reach), causal=causal).to(weights).t()  # type: ignore[union-attr]
    active = (far != 0).to(weights)
    filled = wanted @ active / active.sum(0).clamp_min(1)
    return torch.where(idle, filled, weights)


def _starts(encoding: Any, values: Tensor, weight: Tensor, distance: Tensor) -> list[list[Tensor]]:
    """Where to begin: as the encoding is, and for KERPLE several scales of the distance."""
    own = [p.detach().clone().double() for p in encoding.parameters()]
    if not isinstance(encoding, Kerple):
        return [own]
    shapes = (0.01, 0.1, 1.0, 10.0) if encoding.config.variant == "log" else (0.1, 0.3, 0.6, 1.0)
    names = [name for name, _ in encoding.named_parameters()]
    return [
        [torch.full_like(own[i], 0.5 if name == "r1" else shape) for i, name in enumerate(names)] for shape in shapes
    ]


def _descend(
    encoding: Any, start: list[Tensor], values: Tensor, weight: Tensor, distance: Tensor, causal: bool
) -> tuple[float, list[Tensor]]:
    """Weighted least squares by L-BFGS from ``start``: the loss and the parameters."""
    values, weight = values.double(), weight.double()
    query = (distance.max() if causal else distance.max().clamp_min(0)).view(1, 1)
    # pairs of one query with keys at all the distances; both ends within the trained length
    keys = (query[0, 0] - distance).view(1, -1)
    parameters = list(encoding.parameters())

    def off_by() -> Tensor:
        off = encoding.bias_at(query, keys, causal=causal)[0, :, 0].double() - values
        off = off - (weight * off).sum(1, keepdim=True)
        total: Tensor = (weight * off.square()).sum()
        return total

    with torch.enable_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.requires_grad_(True)
            parameter.data.copy_(value)
        optimiser = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            total = off_by()
            total.backward()
            return total

        optimiser.step(loss)
    with torch.no_grad():
        found = off_by().item() if all(bool(p.isfinite().all()) for p in parameters) else float("inf")
    return found, [p.detach().clone() for p in parameters]
