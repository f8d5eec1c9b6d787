"""The convex problem at the heart of calibration, solved head by head.

A head's new logits are linear in what is fitted: ``l_ij = offset_ij + x_ij . w``, where the features ``x`` are the
products of query and key per frequency (weights: the gains) and functions of the distance (weights: the bias). The
divergence ``sum_i KL(p_i || softmax(l_i))`` from the original's attention ``p`` is then convex in ``w``: its gradient
is ``sum_i (E_q x - E_p x)``, its Hessian ``sum_i Cov_q x`` with the new attention ``q``, and a few damped Newton steps
reach the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import Features

DAMPING = (1.0, 0.5, 0.2, 0.05, 0.01, 1e-3, 1e-4)
"""Lengths of a step that are tried, longest first; the short ones lead out of saturated attention."""

ENOUGH = 1e-3
"""A relative improvement below this ends the steps."""


@dataclass
class Problem:
    """One head.

    Attributes:
        features: what the logits of n queries and their k keys are linear in.
        offset: ``[n, k]``, the part of the logits that stays; ``-inf`` where a key is not visible.
        target: ``[n, k]``, the original's attention weights; their sum is below 1 where the model has attention sinks.
        sink: logit of the sink; None without one.
    """

    features: Features
    offset: Tensor
    target: Tensor
    sink: float | None = None


@dataclass
class Solution:
    """Weights ``[f]`` and the mean divergence per query in nats, before and after."""

    weights: Tensor
    before: float
    after: float


def solve(problem: Problem, start: Tensor, *, steps: int, ridge: Tensor) -> Solution:
    """Minimise the divergence from ``start [f]``.

    Args:
        steps: Newton steps at most.
        ridge: ``[f]``, relative to the mean diagonal of the Hessian: what is added to it.
    """
    weights = start.clone()
    entropy = _entropy(problem)
    loss = first = _divergence(problem, weights)
    if not start.numel() or not steps:
        return Solution(weights, first - entropy, first - entropy)
    for _ in range(steps):
        gradient, hessian = _derivatives(problem, weights)
        diagonal = hessian.diagonal()
        step = torch.linalg.solve(hessian + torch.diag(ridge * diagonal.mean() + 1e-6), gradient)
        for length in DAMPING:
            tried = weights - length * step
            found = _divergence(problem, tried)
            if found < loss:
                break
        else:
            break
        gained, loss, weights = loss - found, found, tried
        if gained < ENOUGH * max(loss - entropy, 1e-6):
            break
    return Solution(weights, first - entropy, loss - entropy)


def divergence(problem: Problem, weights: Tensor) -> float:
    """Mean divergence per query in nats, of weights ``[f]``."""
    return _divergence(problem, weights) - _entropy(problem)


def log_softmax(problem: Problem, weights: Tensor) -> Tensor:
    logits = problem.offset + problem.features.logits(weights)
    total = logits.logsumexp(-1, keepdim=True)
    if problem.sink is not None:
        total = torch.logaddexp(total, total.new_tensor(problem.sink))
    return logits - total


def _divergence(problem: Problem, weights: Tensor) -> float:
    """Mean cross-entropy per query."""
    logs = log_softmax(problem, weights)
    lost = problem.target * logs.masked_fill(problem.offset.isinf(), 0.0)
    total = -lost.sum().item()
    if problem.sink is not None:
        rest = (1 - problem.target.sum(-1)).clamp_min(0)
        total -= (rest * (1 - logs.exp().sum(-1)).clamp_min(1e-9).log()).sum().item()
    return total / len(logs)


def _entropy(problem: Problem) -> float:
    """Mean entropy of the target, below which no divergence can fall."""
    target = problem.target
    total = -torch.special.xlogy(target, target).sum().item()
    if problem.sink is not None:
        rest = (1 - target.sum(-1)).clamp_min(0)
        total -= torch.special.xlogy(rest, rest).sum().item()
    return total / len(target)


def _derivatives(problem: Problem, weights: Tensor) -> tuple[Tensor, Tensor]:
    new = log_softmax(problem, weights).exp()
    mean, wanted = problem.features.sums(new), problem.features.sums(problem.target)
    hessian = problem.features.second(new) - mean.t() @ mean
    return (mean - wanted).mean(0), hessian / len(mean)
