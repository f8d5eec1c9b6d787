"""The convex problem of calibration: derivatives against autograd, minima against an independent optimiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pe_retrofit.retrofit.calibration.features import Features
from pe_retrofit.retrofit.calibration.newton import Problem, Solution, _derivatives, solve

SINKS = [None, 0.7]


def made(sink: float | None, *, seed: int = 0, queries: int = 30, keys: int = 11, functions: int = 5) -> Problem:
    """Random features; every query sees some of the keys, and its target is no softmax of the features."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(queries, keys, functions, generator=g)
    seen = torch.arange(keys) <= torch.randint(1, keys, (queries, 1), generator=g)
    offset = torch.randn(queries, keys, generator=g).masked_fill(~seen, -torch.inf)
    wanted = features @ torch.randn(functions, generator=g) + 2 * torch.randn(queries, keys, generator=g)
    wanted = wanted.masked_fill(~seen, -torch.inf)
    total = wanted.exp().sum(-1, keepdim=True) + (0.0 if sink is None else math.exp(sink))
    return Problem(plain(features), offset, wanted.exp() / total, sink)


def plain(numbers: Tensor) -> Features:
    """Numbers ``[n, k, f]`` that are given for each pair."""
    n, k, _ = numbers.shape
    return Features(torch.zeros(1, k, 0), torch.zeros(n, 0, 0), numbers.mT)


def divergence(problem: Problem, weights: Tensor) -> Tensor:
    """Mean KL in float64, query by query and key by key."""
    total = weights.new_zeros(())
    for x, offset, target in zip(problem.features.shared.mT, problem.offset, problem.target, strict=True):
        keys = [j for j in range(len(offset)) if offset[j] > -torch.inf]
        logits = [offset[j].double() + x[j].double() @ weights for j in keys]
        wanted = [float(target[j]) for j in keys]
        if problem.sink is not None:
            logits.append(weights.new_tensor(problem.sink))
            wanted.append(1 - sum(wanted))
        new = torch.stack(logits).log_softmax(0)
        total = total + sum(p * (math.log(p) - q) for p, q in zip(wanted, new, strict=True) if p > 0)
    return total / len(problem.target)


def minimum(problem: Problem) -> tuple[Tensor, float]:
    weights = torch.zeros(problem.features.shared.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = divergence(problem, weights)
        total.backward()
        return total

    optimiser.step(loss)
    return weights.detach(), loss().item()


def newton(problem: Problem, *, steps: int = 30, ridge: float = 1e-6, start: Tensor | None = None) -> Solution:
    count = problem.features.shared.shape[1]
    return solve(
        problem, torch.zeros(count) if start is None else start, steps=steps, ridge=torch.full((count,), ridge)
    )


@pytest.mark.parametrize(("products", "keyed", "shared"), [(4, 6, 3), (5, 5, 0), (0, 0, 2), (0, 0, 0)])
def test_features_are_sums_over_pairs(products: int, keyed: int, shared: int) -> None:
    """Every sum against the numbers of all pairs, written out."""
    g = torch.Generator().manual_seed(3)
    windows, rows, keys, width = 2, 3, 5, 4

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    n = windows * rows
    made = Features(random(windows, keys, keyed), random(n, products, keyed), random(n, shared, keys))
    mass, values, weights = random(n, keys), random(windows, keys, width), random(products + shared)
    pairs = torch.zeros(n, keys, products + shared, dtype=torch.float64)
    for i in range(n):
        for j in range(keys):
            pairs[i, j] = torch.cat((made.maps[i] @ made.keys[i // rows, j], made.shared[i, :, j]))
    assert torch.allclose(made.logits(weights), pairs @ weights)
    assert torch.allclose(made.sums(mass), torch.einsum("nk,nkf->nf", mass, pairs))
    assert torch.allclose(made.second(mass), torch.einsum("nk,nkf,nkh->fh", mass, pairs, pairs))
    spread = values.repeat_interleave(rows, dim=0)
    assert torch.allclose(made.outer(mass, values), torch.einsum("nk,nkf,nkd->nfd", mass, pairs, spread))


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_minimum(sink: float | None, seed: int) -> None:
    problem = made(sink, seed=seed)
    weights, least = minimum(problem)
    found = newton(problem)
    assert found.before == pytest.approx(divergence(problem, torch.zeros(5, dtype=torch.float64)).item(), rel=1e-4)
    assert found.after == pytest.approx(least, rel=2e-3)
    assert found.after < 0.8 * found.before
    assert (found.weights - weights).abs().max() < 0.05 * weights.abs().max()


@pytest.mark.parametrize("sink", SINKS)
def test_derivatives(sink: float | None) -> None:
    problem = made(sink, queries=6, keys=7, functions=3)
    weights = torch.tensor([0.4, -1.0, 0.2])
    gradient, hessian = _derivatives(problem, weights)

    def of(w: Tensor) -> Tensor:
        return divergence(problem, w)

    wide = weights.double()
    assert (gradient - torch.autograd.functional.jacobian(of, wide)).abs().max() < 1e-5
    assert (hessian - torch.autograd.functional.hessian(of, wide)).abs().max() < 1e-5


def test_what_no_key_can_see_does_not_matter() -> None:
    problem = made(None)
    other = Problem(plain(problem.features.shared.mT.clone()), problem.offset, problem.target)
    other.features.shared.mT[problem.offset.isinf()] = 50.0
    assert torch.allclose(newton(problem).weights, newton(other).weights, atol=1e-4)


def test_loss_never_rises() -> None:
    """Also from a start so far away that whole steps overshoot."""
    for seed in range(5):
        problem = made(SINKS[seed % 2], seed=seed)
        start = 20 * torch.randn(5, generator=torch.Generator().manual_seed(seed))
        losses = [newton(problem, steps=steps, start=start, ridge=0.01).after for steps in range(6)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]


def test_ridge_shortens_steps_and_leaves_the_minimum() -> None:
    problem = made(None)
    one = [newton(problem, steps=1, ridge=ridge).weights.norm() for ridge in (1e-6, 1.0, 100.0)]
    assert one[0] > one[1] > one[2]
    assert one[2] < 0.1 * one[0]
    assert newton(problem, steps=100, ridge=0.3).after == pytest.approx(newton(problem).after, rel=0.02)


def test_a_target_that_can_be_reached_is_reached() -> None:
    problem = made(None)
    truth = torch.tensor([1.0, -0.5, 0.3, 0.0, 2.0])
    problem.target = (problem.offset + problem.features.logits(truth)).softmax(-1)
    found = newton(problem)
    assert found.after < 1e-5
    assert (found.weights - truth).abs().max() < 0.01


def test_nothing_to_fit() -> None:
    problem = made(None, functions=0)
    found = newton(problem)
    assert found.before == found.after > 0
    assert not found.weights.numel()


def test_functions_that_are_never_active_stay() -> None:
    problem = made(None)
    problem.features.shared[:, 2] = 0.0
    found = newton(problem, ridge=0.01)
    assert found.weights[2] == 0
    assert found.after < found.before
