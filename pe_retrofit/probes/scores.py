"""Attention scores at distances beyond the trained length, read off the first layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention.late import LateRotation
from ..patchers.family import find_host
from .lab import HEADS, TRAINED, WIDTH, Lab

PAIRS = 12
"""Token pairs whose scores are looked at."""


def score_rise(lab: Lab, times: tuple[int, ...]) -> dict[int, float]:
    """How far attention scores beyond L rise above those within L, by multiple of L.

    The score of a token on another at each distance, over its score on itself, is read off the first layer's attention.
    Within L both the unpatched model (at the patched one's temperature) and the patched model (which is trained there)
    count as known.

    Returns:
        Multiple -> 95th percentile, over token pairs and heads, of the rise over the range of the known scores.
    """
    near, together = torch.arange(1, TRAINED), torch.zeros(1, dtype=torch.long)
    ratio = _scores(lab, together, lab.model) / _scores(lab, together, lab.stock)
    temperature = ratio.median() if ratio.max() - ratio.min() < 1e-3 else 1.0  # no common one with input encodings
    stock = _scores(lab, near, lab.stock) * temperature
    known = torch.cat((_scores(lab, near, lab.model), stock), dim=1)
    high, low = known.amax(1), known.amin(1)
    late = any(isinstance(m, LateRotation) for m in lab.model.modules())
    result, worst = {}, 0.0
    for factor in times:
        first, last = TRAINED * factor // 2, TRAINED * factor - 1
        far = torch.unique(torch.linspace(first, last, 16 if late else 80).round().long())
        # a late rotation runs rows of different distances one by one, rows of the same one together
        parts = far.split(1) if late else (far,)
        rise = torch.cat([_scores(lab, part, lab.model) for part in parts], dim=1).amax(1) - high
        share = (rise / (high - low).clamp_min(1e-12)).flatten().quantile(0.95).item()
        worst = max(worst, share)  # what goes wrong at 2 L is wrong at 4 L too
        result[factor] = worst
    return result


def _scores(lab: Lab, distances: Tensor, model: Any) -> Tensor:
    """``[pairs, n, h]``: log-odds of attending to a token that far away against attending to oneself."""
    content = lab.tokens(2, rows=PAIRS, seed=11)
    n = len(distances)
    both = content[:, None].expand(PAIRS, n, 2).reshape(PAIRS * n, 2)
    positions = torch.stack((torch.zeros_like(distances), distances), dim=1).repeat(PAIRS, 1)
    mixed = _heads(lab, model, both, positions)[:, 1]
    far = _heads(lab, model, both[:, :1], positions[:, :1])[:, 0]
    own = _heads(lab, model, both[:, 1:], positions[:, 1:])[:, 0]
    weight = ((mixed - own) * (far - own)).sum(-1) / (far - own).square().sum(-1).clamp_min(1e-300)
    return torch.logit(weight.clamp(1e-12, 1 - 1e-12)).view(PAIRS, n, HEADS)


def _heads(lab: Lab, model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """``[rows, count, h, d]``: what each head of the first layer returns."""
    attention: Any = find_host(model).attentions[0]
    seen: list[Tensor] = []
    last = getattr(attention, "o_proj", None) or getattr(attention, "dense", None)
    if last is not None:
        handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    else:
        handle = attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    try:
        lab.output(ids, positions, model=model)
    finally:
        handle.remove()
    return seen[0].reshape(*ids.shape, HEADS, WIDTH // HEADS)
