"""A second look at a head: not its attention weights but what it puts out should be the original's.

Weights that differ where the values are alike, or small (attention sinks), do no harm, and what no weights can express
is better not attended to at all. From the least divergence on, a few Gauss-Newton steps lower the squared error of
the head's output ``o_i = sum_j q_ij v_j``, whose derivative is ``sum_j q_ij (v_j - o_i) x_ij``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .newton import ENOUGH, Problem, log_softmax

DAMPING = (1.0, 0.3, 0.1, 0.03)


@dataclass
class Outputs:
    """What a head's attention mixes, and what should come out.

    Attributes:
        values: ``[w, k, d]``, of each window.
        wanted: ``[n, d]``, the original's output for the n queries, the same number of each window.
    """

    values: Tensor
    wanted: Tensor


def refine(
    problem: Problem, outputs: Outputs, start: Tensor, *, steps: int, ridge: float
) -> tuple[Tensor, float, float]:
    """Lower the output's error from weights ``start [f]``.

    Returns:
        The weights, and the relative squared error before and after.
    """
    size = float(outputs.wanted.square().sum().clamp_min(1e-12))
    weights = start
    found, error = _error(problem, outputs, weights)
    first = loss = float(error.square().sum()) / size
    for _ in range(steps if start.numel() else 0):
        gradient, hessian = _derivatives(problem, outputs, found, error)
        diagonal = hessian.diagonal()
        step = torch.linalg.solve(hessian + torch.diag(ridge * (diagonal + diagonal.mean()) + 1e-9), gradient)
        for length in DAMPING:
            tried = weights - length * step
            found, error = _error(problem, outputs, tried)
            now = float(error.square().sum()) / size
            if now < loss:
                break
        else:
            break
        gained, loss, weights = loss - now, now, tried
        if gained < ENOUGH * loss:
            break
    return weights, first, loss


def _error(problem: Problem, outputs: Outputs, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights ``[n, k]`` and errors of the output ``[n, d]``."""
    new = log_softmax(problem, weights).exp()
    mixed = new.unflatten(0, (len(outputs.values), -1)).matmul(outputs.values).flatten(0, 1)
    return new, mixed - outputs.wanted


def _derivatives(problem: Problem, outputs: Outputs, new: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    mean, output = problem.features.sums(new), error + outputs.wanted
    slope = problem.features.outer(new, outputs.values) - mean[:, :, None] * output[:, None]
    flat = slope.transpose(0, 1).flatten(1)
    return flat @ error.flatten(), flat @ flat.t()
