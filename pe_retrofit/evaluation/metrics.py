"""Scores of single answers, and means with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def contained(text: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the text, whatever the case (RULER's ``string_match_all``)."""
    return sum(r.lower() in text.lower() for r in references) / len(references)


def any_contained(text: str, references: Sequence[str]) -> float:
    """1 when any reference occurs in the text, whatever the case (RULER's ``string_match_part``)."""
    return float(any(r.lower() in text.lower() for r in references))


def bootstrap(values: Sequence[float], weights: Sequence[float] | None = None, *, seed: int = 0) -> list[float] | None:
    """95 % interval of the (weighted) mean: percentiles of 2000 resamples.

    Args:
        values: one per independent unit; for paired differences, the differences.
        weights: of the units; equal by default.

    Returns:
        ``[low, high]``, or None for fewer than two units or values that are not finite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    data = np.asarray(values, dtype=np.float64)
    share = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    means = (data[picks] * share[picks]).sum(1) / share[picks].sum(1)
    tail = (1 - LEVEL) / 2
    return [float(v) for v in np.quantile(means, [tail, 1 - tail])]


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float | None:
    """(Weighted) mean; None without values."""
    if not values:
        return None
    share = [1.0] * len(values) if weights is None else list(weights)
    return math.fsum(v * w for v, w in zip(values, share, strict=True)) / math.fsum(share)


def perplexity(nll: float | None) -> float | None:
    """``exp(nll)``; None where it is not a finite number."""
    if nll is None or not math.isfinite(nll) or nll > 700:
        return None
    return math.exp(nll)


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of the ``n``-grams that occurred before, 0 to 1; 0 for fewer than two of them."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
