"""Score encodings: no given functions of the distance span what they say, so gradients look for it.

What Shaw's, Transformer-XL's and DeBERTa's tables, CoPE's and FoX's gates add to a logit depends on queries and keys.
The layer's attention is computed as it will be, and L-BFGS lowers the divergence from the original's attention, and
after that the error of the output. Such tables have far more numbers than a head has logits of note, so a part of the
windows is kept aside: the parameters that do best there are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attention.call import Call
from ...attention.gain import QueryGain
from ...attention.reference import eager_attention
from ...sites import BiasEncoding, ScoreEncoding
from .options import CalibrateOptions
from .targets import Native, target_weights, within

ITERATIONS = 5
"""Of L-BFGS between two looks at the windows kept aside."""

PATIENCE = 2
"""Looks without an improvement that end the search."""

ASIDE = 4
"""One window in so many is kept aside."""

ROUNDS = 3
"""Looks per step of Newton's method that the options grant the other encodings."""

WIDTH = 3
"""Queries of a stretch per row that the options grant them: a gradient costs less than second moments."""

LEAST = 1e-30
"""Attention weights are taken for no less."""


@dataclass
class Stretch:
    """Neighbouring queries of a window.

    Attributes:
        call: these ``n`` queries with the keys they see, as the layer gets them, before any gain.
        target: ``[h, n, k]``, the original's attention weights.
        wanted: ``[h, n, d]``, the original's output.
    """

    call: Call
    target: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Distance:
    """Means over the heads: divergence of attention in nats per query, and relative squared error of the output."""

    divergence: Tensor
    output: Tensor


@dataclass
class Descent:
    """A layer's score encodings, what is fitted beside them, and what they should imitate.

    Attributes:
        scores: whose parameters are set, with those of ``gain``.
        biases: stay as they are.
    """

    scores: Sequence[ScoreEncoding]
    gain: QueryGain | None
    biases: Sequence[BiasEncoding[Any]]
    stretches: Sequence[Stretch]

    @classmethod
    def of(
        cls,
        items: Sequence[Any],
        originals: Sequence[Call],
        calls: Sequence[Call],
        native: Native,
        options: CalibrateOptions,
        generator: torch.Generator,
    ) -> Descent | None:
        """Of a layer that carries ``items``, with a call per window; None without scores that can be fitted.

        The stretches lie evenly over the windows, each elsewhere, in an order drawn with ``generator``.
        """
        scores = [item for item in items if isinstance(item, ScoreEncoding) and list(item.parameters())]
        if not scores:
            return None
        length = calls[0].query.shape[2] - 1  # the first sees itself alone
        width = min(WIDTH * options.rows, length)
        places = torch.randperm(len(calls), generator=generator)
        biases = [item for item in items if isinstance(item, BiasEncoding)]
        stretches = []
        for call, original, place in zip(calls, originals, places.tolist(), strict=True):
            start = 1 + round((length - width) * (place + 0.5) / len(calls))
            part = call.rows(start, start + width)
            target = target_weights(original, native, torch.arange(start, start + width))[..., : part.key.shape[2]]
            if (bias := replace(part, biases=biases).bias()) is not None:
                target = within(target, bias[0] == -torch.inf, part.sinks)
            value = original.value[0, :, : part.key.shape[2]].float().repeat_interleave(call.groups, 0)
            stretches.append(Stretch(part, target, target @ value))
        gain = next((item for item in items if isinstance(item, QueryGain)), None)
        return cls(scores, gain, biases, stretches)

    def measure(self) -> Distance:
        """Of all stretches, with the parameters as they are."""
        with torch.no_grad():
            return self._distance(self.stretches)

    def run(self, *, steps: int, output_steps: int) -> None:
        """Set the parameters: first for the divergence, then for the output; each in float32, whatever their dtype.

        Args:
            steps, output_steps: :data:`ROUNDS` times :data:`ITERATIONS` steps of L-BFGS each, at most.
        """
        modules = [*self.scores, *([] if self.gain is None else [self.gain])]
        parameters = [p for module in modules for p in module.parameters()]
        kept = [(p.dtype, p.requires_grad) for p in parameters]
        for module in modules:
            module.float()
        try:
            self._descend(parameters, lambda d: d.divergence, ROUNDS * steps)
            self._descend(parameters, lambda d: d.output, ROUNDS * output_steps)
        finally:
            for parameter, (dtype, trained) in zip(parameters, kept, strict=True):
                parameter.grad = None
                parameter.data = parameter.data.to(dtype)
                parameter.requires_grad_(trained)

    def _descend(self, parameters: list[nn.Parameter], objective: Callable[[Distance], Tensor], rounds: int) -> None:
        aside = self.stretches[::ASIDE] if len(self.stretches) > 1 else self.stretches
        used = [s for i, s in enumerate(self.stretches) if i % ASIDE] or self.stretches

        def look() -> float:
            with torch.no_grad():
                return float(objective(self._distance(aside)))

        least, best, left = look(), [p.detach().clone() for p in parameters], PATIENCE
        optimiser = torch.optim.LBFGS(
            [p.requires_grad_() for p in parameters], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            total = objective(self._distance(used))
            total.backward()
            return total

        try:
            for _ in range(rounds):
                with torch.enable_grad():
                    optimiser.step(loss)
                found = look()
                if found < least:
                    least, best, left = found, [p.detach().clone() for p in parameters], PATIENCE
                elif not (left := left - 1):
                    break
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)

    def _distance(self, stretches: Sequence[Stretch]) -> Distance:
        divergence, output = zip(*(self._of(stretch) for stretch in stretches), strict=True)
        wanted = torch.stack([s.wanted.square().sum((1, 2)) for s in stretches]).sum(0).clamp_min(1e-12)
        queries = sum(s.target.shape[1] for s in stretches)
        return Distance(torch.stack(divergence).sum(0).mean() / queries, (torch.stack(output).sum(0) / wanted).mean())

    def _of(self, stretch: Stretch) -> tuple[Tensor, Tensor]:
        """``[h]`` and ``[h]``: summed divergence, and summed squared error of the output."""
        call = stretch.call
        query = call.query.float() if self.gain is None else self.gain.turn(call.query.float())
        call = replace(call, query=query, key=call.key.float(), value=call.value.float())
        output, weights = eager_attention(replace(call, scores=self.scores, biases=self.biases))
        target = stretch.target
        lost = torch.special.xlogy(target, target) - target * weights[0].clamp_min(LEAST).log()
        divergence = lost.sum((1, 2))
        if call.sinks is not None:
            rest, given = (1 - w.sum(-1) for w in (target, weights[0]))
            rest = rest.clamp_min(0)
            divergence = divergence + (torch.special.xlogy(rest, rest) - rest * given.clamp_min(1e-9).log()).sum(1)
        return divergence, (output[0] - stretch.wanted).square().sum((1, 2))
