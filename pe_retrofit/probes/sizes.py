"""How large what an encoding brings into a model is: near, and far beyond the trained length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.late import LateRotation
from ..attention.piecewise import PiecewiseRotation
from ..attention.scale import LogitScale
from ..installing import KERNEL
from ..patchers.family import find_host
from ..sites import BiasEncoding, Block, InputEncoding, LocalInput, RotationEncoding, ScoreEncoding
from .lab import TRAINED, Lab

QUERIES = 32
"""Queries whose added scores are looked at."""


@dataclass(frozen=True)
class Size:
    """One thing an encoding brings in.

    Attributes:
        near, far: its largest size up to L, and up to ``last`` tokens.
        what: in words.
        last: 16 L, or as far as the encoding goes.
        at_input: added to the embeddings.
        most: growth that still counts as none; larger where both sizes are of samples.
    """

    near: float
    far: float
    what: str
    last: int
    at_input: bool = False
    most: float = 1.1

    @property
    def growth(self) -> float:
        """``far`` over ``near``; infinite where something comes out of nothing."""
        return self.far / self.near if self.near else (1.0 if self.far == 0 else float("inf"))

    @property
    def bounded(self) -> bool:
        """Whether it grows with the length by no more than :attr:`most`."""
        return self.growth < self.most


def sizes(lab: Lab) -> list[Size]:
    """Everything the encoding brings in, what grows most beyond measure first."""
    last, first = lab.reach, min(TRAINED, lab.reach)
    found: list[Size] = []
    modules = list(lab.model.modules())
    biases = [m for m in modules if isinstance(m, BiasEncoding)]
    if biases:
        near, far = (max(_bias(b, n, lab.causal) for b in biases) for n in (first, last))
        found.append(Size(near, far, "largest bias on a logit", last))
    if any(isinstance(m, ScoreEncoding) for m in modules):
        until = min(last, 4 * TRAINED)  # every query scores every key, which takes long
        near, far = (_score(lab, n) for n in (first, until))
        what = "largest added score (mean over queries) over the content score (root mean square)"
        found.append(Size(near, far, what, until, most=1.25))
    inputs = [m for m in modules if isinstance(m, InputEncoding)]
    table = find_host(lab.model).table
    if any(isinstance(m, LocalInput) for m in inputs):
        near, far = _local(lab, next(m for m in inputs if isinstance(m, LocalInput)), last)
        what = "vector over token embedding (root mean square), the first and the last L tokens"
        found.append(Size(near, far, what, last, at_input=True))
    elif inputs or table is not None:
        near, far = (_vectors(lab, n) for n in (first, last))
        if far:  # a table that something else has replaced is silent
            found.append(Size(near, far, "vector over token embedding (root mean square)", last, at_input=True))
    heat = [m for m in modules if isinstance(m, LogitScale)]
    if heat:
        near, far = (max(m.factor * m.at(torch.tensor(n - 1)).item() for m in heat) for n in (first, last))
        found.append(Size(near, far, "factor on the logits of the last query", last))
    if not found:
        near, far = (_rotated(lab, n) for n in (first, last))
        found.append(Size(near, far, "length of a rotated query over the original's", last))
    return sorted(found, key=lambda size: -size.growth / size.most)


def _bias(bias: BiasEncoding, count: int, causal: bool) -> float:
    query, keys = torch.tensor([[count - 1]]), torch.arange(count)[None]
    with torch.no_grad():
        values = bias.bias_at(query, keys, causal=causal)
    return values[torch.isfinite(values)].abs().max().item()


def _score(lab: Lab, count: int) -> float:
    """Of the last queries on as many keys, evenly spread, whatever the length; over all layers."""
    worst = 0.0
    with _blocks(lab) as seen:
        lab.output(lab.tokens(count))
    keys = torch.linspace(0, count - 1, min(count, TRAINED)).round().long()
    with torch.no_grad():
        for encoding, block in seen.items():
            content = torch.matmul(block.query, block.key.repeat_interleave(block.groups, 1).transpose(2, 3))
            added = encoding.scores(block).abs()
            if block.allowed is not None:
                added = added.masked_fill(~block.allowed, 0.0)
            largest = added[:, :, -QUERIES:, keys].amax(-1).mean().item()
            worst = max(worst, largest / (lab.size(content) * block.scaling))
    return worst


@contextmanager
def _blocks(lab: Lab) -> Iterator[dict[ScoreEncoding[Any], Block]]:
    """While the model runs: the last queries and their keys that each score encoding sees."""
    seen: dict[ScoreEncoding[Any], Block] = {}
    encodings = [m for m in lab.model.modules() if isinstance(m, ScoreEncoding)]
    attentions = find_host(lab.model).attentions

    def noting(encoding: ScoreEncoding[Any]) -> Any:
        scores = encoding.scores

        def note(block: Block) -> Tensor:
            seen[encoding] = block
            return scores(block)

        return note

    before = [getattr(a, KERNEL, "auto") for a in attentions]
    try:
        for attention in attentions:
            setattr(attention, KERNEL, "blockwise")  # the one that asks for whole scores
        for encoding in encodings:
            encoding.__dict__["scores"] = noting(encoding)
        yield seen
    finally:
        for attention, kernel in zip(attentions, before, strict=True):
            setattr(attention, KERNEL, kernel)
        for encoding in encodings:
            encoding.__dict__.pop("scores", None)


@torch.no_grad()
def _local(lab: Lab, local: LocalInput[Any], count: int) -> tuple[float, float]:
    hidden = lab.model.get_input_embeddings().weight[lab.tokens(count)].to(torch.float64)
    added = (local(hidden) - hidden)[0] / lab.size(hidden)
    return lab.size(added[:TRAINED]), lab.size(added[-TRAINED:])


@torch.no_grad()
def _vectors(lab: Lab, count: int) -> float:
    """Largest vector of a text of ``count`` tokens."""
    host = find_host(lab.model)
    table: Any = host.table
    positions = torch.arange(count) + host.reserved_rows * (table is not None)
    module = table if table is not None else lab.model.position_encoding.values()[0]
    size = module(positions).square().mean(-1).sqrt()
    return (size / lab.size(lab.model.get_input_embeddings().weight.detach())).max().item()


def _rotated(lab: Lab, count: int) -> float:
    """Largest amplitude of the rotation at any position, or for any distance, below ``count``."""
    for module in lab.model.modules():
        if isinstance(module, PiecewiseRotation):
            return module.scaling
        if isinstance(module, LateRotation):
            return module.scaling * _decay(module, count)
    seen: list[Any] = []
    handle = (
        find_host(lab.model)
        .attentions[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_embeddings"]), with_kwargs=True
        )
    )
    try:
        places = min(count, TRAINED)  # FoPE's differ from place to place, RoPE's do not
        lab.output(lab.tokens(places), torch.linspace(0, count - 1, places).round().long())
    finally:
        handle.remove()
    cos, sin = seen[0]
    return (cos.square() + sin.square()).sqrt().max().item()


def _decay(late: LateRotation, count: int) -> float:
    """Root of the largest factor on a product ``q . k``."""
    if not isinstance(late.encoding, RotationEncoding):
        return 1.0
    distances = torch.arange(count)[None]
    query = late.encoding.amplitude(distances, 0, query=True)
    key = late.encoding.amplitude(torch.zeros_like(distances), 0, query=False)
    return 1.0 if query is None or key is None else (query * key).max().sqrt().item()
