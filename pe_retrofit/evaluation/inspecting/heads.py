"""What a layer's heads attend to, gathered block by block; memory is ``O(heads x length)``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...attention.call import Call
from .distances import bin_edges, by_bin, diagonal_sums
from .observing import blocks

EXACT = 64
"""Distances reported one by one."""

DEFINITIONS = {
    "queries": "means are over the queries that see a key other than a sink",
    "sinks": (
        "the first token of a decoder, the first and the last of an encoder ([CLS], [SEP]); their share is sink_mass, "
        "with what a learned sink without a key takes. Everything by distance leaves them out"
    ),
    "entropy": "of a query's attention, in nats",
    "entropy_normalised": "entropy over the logarithm of the number of keys that the query sees: 0 one key, 1 uniform",
    "largest": "largest share on one key that is no sink",
    "mean_distance": "|i - j| in tokens, weighted by attention",
    "ahead": "share of attention on later tokens (encoders)",
    "mass": "share of attention at the distances of a bin",
    "weight": "mean attention to one key at the distances of a bin, over all pairs that see each other",
    "weight_at": f"the same at distance 0, 1, ... {EXACT - 1}",
    "beyond": "share of attention at the bin's lower edge or further, of the queries that have text so far away",
    "layout": "[layer][head], then [bin] or [distance]",
}

PER_HEAD = ("entropy", "entropy_normalised", "sink_mass", "largest", "mean_distance", "ahead")
BY_DISTANCE = ("mass", "weight", "weight_at", "beyond")


class LayerStatistics:
    """Observer of one layer over one text.

    Args:
        length: tokens of the text.
        causal: decoder or encoder.
    """

    def __init__(self, length: int, causal: bool) -> None:
        self.length, self.causal = length, causal
        self.sinks = [0] if causal else [0, length - 1]
        self.edges = bin_edges(length)
        self.queries = 0
        self.sums: dict[str, Tensor] = {}
        self.pairs = torch.zeros(length, dtype=torch.float64)

    def __call__(self, call: Call) -> None:
        """Take in a call: all queries of the layer, or some."""
        for first, weights, visible in blocks(call):
            self.add(first, weights, visible)

    def add(self, first: int, weights: Tensor, visible: Tensor) -> None:
        """Take in a block.

        Args:
            first: index of the first query.
            weights: ``[h, q, k]``.
            visible: bool ``[q, k]``.
        """
        q, k = visible.shape
        sinks = [j for j in self.sinks if j < k]
        others = visible.clone()
        others[:, sinks] = False
        counted = others.any(-1)
        rest = weights.clone()
        rest[:, :, sinks] = 0
        i = torch.arange(first, first + q, device=weights.device)[:, None]
        j = torch.arange(k, device=weights.device)
        known = visible.sum(-1).clamp_min(2)
        entropy = torch.special.entr(weights).sum(-1)
        spread = entropy / known.log()
        plain = rest.sum(-1)
        far = (rest * (i - j).abs()).sum(-1)
        rows = {
            "entropy": entropy,
            "entropy_normalised": spread,
            "rest": plain,
            "largest": rest.amax(-1),
            "far": far,
            "ahead": rest.masked_fill(j <= i, 0).sum(-1),
        }
        self.queries += int(counted.sum())
        for name, values in rows.items():
            self._sum(name, values[:, counted].double().sum(-1))
        self._sum("by_distance", diagonal_sums(rest, first, self.length))
        self.pairs += diagonal_sums(others.double(), first, self.length).cpu()

    def _sum(self, name: str, values: Tensor) -> None:
        values = values.detach().double().cpu()
        self.sums[name] = values if name not in self.sums else self.sums[name] + values

    def result(self) -> dict[str, Tensor]:
        """Float64, by the names of :data:`PER_HEAD` (``[h]``) and :data:`BY_DISTANCE` (``[h, n]``)."""
        n, sums = max(1, self.queries), self.sums
        mass, rest = sums["by_distance"], sums["rest"]
        pairs = by_bin(self.pairs, self.edges)
        binned = by_bin(mass, self.edges)
        tail = mass.flip(-1).cumsum(-1).flip(-1)
        lower = self.edges[:-1]
        return {
            "entropy": sums["entropy"] / n,
            "entropy_normalised": sums["entropy_normalised"] / n,
            "sink_mass": 1 - rest / n,
            "largest": sums["largest"] / n,
            "mean_distance": sums["far"] / rest.clamp_min(1e-12),
            "ahead": sums["ahead"] / n,
            "mass": binned / n,
            "weight": binned / pairs,  # nan where no pair is that far
            "weight_at": mass[:, :EXACT] / self.pairs[:EXACT],
            "beyond": tail[:, lower] / torch.tensor([self._reaching(d) for d in lower], dtype=torch.float64),
        }

    def _reaching(self, distance: int) -> int:
        """How many queries have a token at least so far away that is no sink; at least 1."""
        if self.causal:
            return max(1, self.length - 1 - max(distance, 0))
        last = self.length - 2
        return max(1, sum(i - 1 >= distance or last - i >= distance for i in range(self.length)))


def gathered(layers: Sequence[LayerStatistics]) -> dict[str, Any]:
    """All layers as plain lists: name -> ``[layer][head]`` or ``[layer][head][bin]``; bins as ``[low, high]``."""
    found = [layer.result() for layer in layers]
    edges = layers[0].edges
    return {
        "length": layers[0].length,
        "bins": [[low, high - 1] for low, high in pairwise(edges)],
        **{name: [part[name].tolist() for part in found] for name in (*PER_HEAD, *BY_DISTANCE)},
    }
