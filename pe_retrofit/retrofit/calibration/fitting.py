"""Fit what one attention layer carries to the attention weights of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.call import Call
from ...attention.gain import QueryGain
from ...attention.scale import LogitScale
from ...encodings.t5 import t5_bucket
from ...sites import BiasEncoding, ScoreEncoding
from .descent import Descent
from .features import Features
from .imitation import imitate, spread
from .newton import Problem, divergence, solve
from .options import CalibrateOptions
from .outputs import Outputs, refine
from .targets import Native, allowed, target_weights, within

BUCKETS = 64
"""Logarithmic buckets of the free table that a bias without a basis of its own is fitted through."""

MOST_FEATURES = 128
"""A bias with more functions of the distance than this is fitted through the free table too."""


@dataclass
class Fit:
    """A layer with the default start, and fitted.

    Attributes:
        before / after: mean divergence of the heads' attention from the original's, in nats per query.
        output_before / output_after: mean squared error of the heads' outputs, relative to the original's.
    """

    before: float
    after: float
    output_before: float
    output_after: float


def fittable(attention: nn.Module) -> bool:
    """Whether a layer carries something that can be fitted in place of a rotation or table."""
    items = list(getattr(attention, "position_encoding", {}).values())
    known = all(isinstance(i, (QueryGain, LogitScale, BiasEncoding, ScoreEncoding)) for i in items)
    return known and any(list(i.parameters()) for i in items)


@torch.no_grad()
def fit_layer(
    attention: nn.Module,
    originals: Sequence[Call],
    calls: Sequence[Call],
    native: Native,
    options: CalibrateOptions,
    generator: torch.Generator,
) -> Fit:
    """Set what a layer has learned: gains and biases head by head, then scores, with the gains once more.

    Args:
        originals: one call per window, of this layer on the original's states; its queries and keys not rotated.
        calls: the same on the states that the layer will see.
        native: how the original rotated them.
    """
    carried: Any = attention.position_encoding
    items = list(carried.values())
    gain = next((item for item in items if isinstance(item, QueryGain)), None)
    biases = [item for item in items if isinstance(item, BiasEncoding) and list(item.parameters())]
    descent = Descent.of(items, originals, calls, native, options, generator)
    start = None if descent is None else descent.measure()
    rows = [_rows(call, options, generator) for call in calls]
    heads = calls[0].query.shape[1]
    targets = [target_weights(call, native, r) for call, r in zip(originals, rows, strict=True)]
    still = [b for b in calls[0].biases if not list(b.parameters())]
    layer = _Layer(calls, rows, targets, gain, heads, still, originals)
    default = layer.solve([], replace(options, steps=0, output_steps=0), fixed=biases, start=_ones(gain, heads))
    usual = layer.usual(native)
    for encoding in biases:
        encoding.open_basis(layer.reach, causal=layer.causal)
    direct = [b for b in biases if (n := _features_of(b, calls[0])) and n <= MOST_FEATURES]
    other = [b for b in biases if b not in direct]
    found = layer.solve(direct, options, free=bool(other), start=usual, fixed=other[1:])
    if other:
        imitate(other[0], layer.table(found), layer.seen(), causal=calls[0].causal)
    for encoding, weights in found.of_biases.items():
        encoding.take(spread(encoding, weights, layer.reach, causal=calls[0].causal))
    if biases:  # the gains once more, for the biases as they could be expressed
        again = replace(options, steps=0) if options.output_steps and not other else options
        found = layer.solve([], again, fixed=biases, start=found.gains)
    if gain is not None:
        gain.gain.copy_(found.gains)
    if descent is None or start is None:
        return Fit(default.after, found.after, default.output, found.output)
    descent.run(steps=options.steps, output_steps=options.output_steps)
    end = descent.measure()
    return Fit(float(start.divergence), float(end.divergence), float(start.output), float(end.output))


def _ones(gain: QueryGain | None, heads: int) -> Tensor:
    count = 0 if gain is None else gain.gain.shape[1]
    return torch.tensor([1.0, 0.0]).repeat(heads, count, 1)


@dataclass
class _Found:
    gains: Tensor
    of_biases: dict[Any, Tensor]
    table: Tensor | None
    after: float
    output: float


class _Layer:
    """The heads' problems of a layer, whose parts they share."""

    def __init__(
        self,
        calls: Sequence[Call],
        rows: list[Tensor],
        targets: list[Tensor],
        gain: QueryGain | None,
        heads: int,
        still: Sequence[BiasEncoding[Any]],
        originals: Sequence[Call],
    ) -> None:
        self.originals = originals
        self.calls, self.rows, self.heads, self.still = calls, rows, heads, still
        self.scored = [self._scores(c, r) for c, r in zip(calls, rows, strict=True)]
        self.hidden = [h == -torch.inf for h in self._added(calls[0].biases)]
        self.targets = [within(t, h, calls[0].sinks) for t, h in zip(targets, self.hidden, strict=True)]
        self.frequencies = 0 if gain is None else gain.gain.shape[1]
        self.distance = torch.stack(
            [c.query_positions[0, r][:, None] - c.key_positions[0][None] for c, r in zip(calls, rows, strict=True)]
        )
        self.allowed = torch.stack([allowed(c)[r] for c, r in zip(calls, rows, strict=True)])
        self.reach = int(self.distance.abs().max())
        self.causal = calls[0].causal

    def solve(
        self,
        direct: Sequence[BiasEncoding[Any]],
        options: CalibrateOptions,
        *,
        start: Tensor,
        free: bool = False,
        fixed: Sequence[BiasEncoding[Any]] = (),
    ) -> _Found:
        """Newton's method per head from gains ``start [h, n, 2]``, with the weights of ``direct`` (and of a free table)
        beside them."""
        bases = [b.basis(self.distance, causal=self.causal).float() for b in direct]  # type: ignore[union-attr]
        if free:
            bases.append(_free(self.distance, self.causal))
        sizes = [basis.shape[-1] for basis in bases]
        scales = [float(basis.abs().amax().clamp_min(1e-6)) for basis in bases]  # Newton's ridge wants unit features
        shared = torch.cat(
            [torch.zeros(*self.distance.shape, 0), *(b / s for b, s in zip(bases, scales, strict=True))], dim=-1
        )
        shared = shared.flatten(0, 1).mT.contiguous()
        width = 2 * self.frequencies
        ridge = torch.cat((torch.full((width,), options.ridge), torch.full((sum(sizes),), 1e-3 * options.ridge)))
        after = output = 0.0
        gains, weights = [], []
        added = self._added([*self.still, *fixed])
        for head in range(self.heads):
            problem = self._problem(head, shared, added)
            guess = torch.zeros(width + sum(sizes))
            guess[:width] = start[head].t().reshape(-1)
            found = solve(problem, guess, steps=options.steps, ridge=ridge)
            refined, _, error = refine(
                problem, self._outputs(head), found.weights, steps=options.output_steps, ridge=options.ridge
            )
            output += error / self.heads
            after += (found.after if refined is found.weights else divergence(problem, refined)) / self.heads
            gains.append(refined[:width].view(2, -1).t())
            weights.append(refined[width:])
        parts = torch.stack(weights).split(sizes, dim=1) if sizes else ()
        parts = tuple(part / scale for part, scale in zip(parts, scales, strict=True))
        return _Found(
            torch.stack(gains),
            dict(zip(direct, parts, strict=False)),
            parts[-1] if free else None,
            after,
            output,
        )

    def usual(self, native: Native) -> Tensor:
        """``[h, n, 2]``: the mean of ``e^(i distance theta)`` under each head's attention, where Newton begins."""
        if native.inv_freq is None or not self.frequencies:
            return torch.zeros(self.heads, self.frequencies, 2)
        mass = self.seen()
        angles = _distances(self.reach, self.causal)[:, None] * native.inv_freq
        mean = mass / mass.sum(1, keepdim=True)
        return torch.stack((mean @ angles.cos(), mean @ angles.sin()), dim=-1)

    def table(self, found: _Found) -> Tensor:
        """``[h, n]``: the free table at the distances of :meth:`seen`."""
        assert found.table is not None
        values: Tensor = found.table @ _free(_distances(self.reach, self.causal), self.causal).t()
        return values

    def seen(self) -> Tensor:
        """``[h, n]``: how much heads attended to each distance ``-reach .. reach`` (causal: ``0 .. reach``)."""
        index = self.distance if self.causal else self.distance + self.reach
        size = self.reach + 1 if self.causal else 2 * self.reach + 1
        mass = torch.zeros(self.heads, size)
        flat = index.clamp(0, size - 1).flatten()
        for head in range(self.heads):
            mass[head].index_add_(0, flat, torch.stack([t[head] for t in self.targets]).flatten())
        return mass

    def _added(self, biases: Sequence[BiasEncoding[Any]]) -> list[Tensor]:
        """``[h, n, k]`` per window: what biases as they are add to the logits."""
        return [
            sum(
                (b.bias_at(c.query_positions[:, r], c.key_positions, causal=c.causal)[0].float() for b in biases),
                torch.zeros(self.heads, len(r), c.key.shape[2]),
            )
            for c, r in zip(self.calls, self.rows, strict=True)
        ]

    @staticmethod
    def _scores(call: Call, rows: Tensor) -> Tensor:
        """``[h, n, k]``: what score encodings add for some queries; 0 without any."""
        if not call.scores:
            return torch.zeros(())
        block = call.block()
        return torch.stack([e.scores(block)[0][:, rows].float() for e in call.scores]).sum(0)

    def _outputs(self, head: int) -> Outputs:
        group = head // self.calls[0].groups
        return Outputs(
            torch.stack([call.value[0, group].float() for call in self.calls]),
            torch.cat([t[head] @ o.value[0, group].float() for t, o in zip(self.targets, self.originals, strict=True)]),
        )

    def _problem(self, head: int, shared: Tensor, added: list[Tensor]) -> Problem:
        maps, keys, offsets = [], [], []
        width = 2 * self.frequencies
        for number, (call, rows) in enumerate(zip(self.calls, self.rows, strict=True)):
            query = call.query[0, head, rows].float()
            key = call.key[0, head // call.groups].float()
            offset = query[:, width:] @ key[:, width:].t() * call.scaling
            offset = offset + added[number][head]
            if call.scores:
                offset = offset + self.scored[number][head]
            offsets.append(offset.masked_fill(~self.allowed[number] | self.hidden[number][head], -torch.inf))
            maps.append(_products(query[:, :width]) * call.scaling)
            keys.append(key[:, :width])
        sinks = self.calls[0].sinks
        return Problem(
            Features(torch.stack(keys), torch.cat(maps), shared),
            torch.cat(offsets),
            torch.cat([t[head] for t in self.targets]),
            None if sinks is None else float(sinks[head]),
        )


def _products(query: Tensor) -> Tensor:
    """``[n, 2m, 2m]``: what takes a key, m complex numbers, to its products with queries ``[n, 2m]``.

    A gain ``a + ib`` gives ``Re((a + ib) q conj(k)) = a Re(q conj(k)) - b Im(q conj(k))``: the real parts come first,
    then the imaginary ones with that sign.
    """
    first, second = (part.diag_embed() for part in query.chunk(2, dim=-1))
    return torch.cat((torch.cat((first, second), dim=-1), torch.cat((-second, first), dim=-1)), dim=-2)


def _rows(call: Call, options: CalibrateOptions, generator: torch.Generator) -> Tensor:
    count = call.query.shape[2]
    chosen = torch.randperm(count - 1, generator=generator)[: options.rows] + 1  # the first sees itself alone
    return chosen.sort().values


def _features_of(encoding: BiasEncoding[Any], call: Call) -> int:
    basis = encoding.basis(torch.arange(2), causal=call.causal)
    return 0 if basis is None else basis.shape[-1]


def _distances(reach: int, causal: bool) -> Tensor:
    return torch.arange(reach + 1) if causal else torch.arange(-reach, reach + 1)


def _free(distance: Tensor, causal: bool) -> Tensor:
    buckets = t5_bucket(distance, not causal, BUCKETS, 4 * BUCKETS)
    return nn.functional.one_hot(buckets, BUCKETS).float()
