"""Which layers should keep the native encoding: what each one is worth, and the loss when k of them keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...installing.strength import attach
from ...likelihood import hidden_states, perplexity, predicts
from ...patchers.family import Host, find_host
from ...positions import KEYWORD
from ...progress import Report


@dataclass(frozen=True)
class Curve:
    """Loss against the number of layers that keep the native encoding.

    Attributes:
        order: layers, the one that is missed most first.
        alone: loss when that layer alone is retrofitted, in the order of the layers' indices.
        points: ``(k, loss)`` when the first k of ``order`` keep the native encoding.
        original: loss of the model before.
        measure: ``perplexity``, or ``error`` (relative, of the last hidden states) for models without a causal head.
    """

    order: tuple[int, ...]
    alone: tuple[float, ...]
    points: tuple[tuple[int, float], ...]
    original: float
    measure: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "order": list(self.order),
            "alone": list(self.alone),
            "points": [{"native_layers": k, "loss": loss} for k, loss in self.points],
            "original": self.original,
            "measure": self.measure,
        }


@contextmanager
def native_layers(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Some layers of a patched model compute what they did before the patch while the block lasts."""
    host = find_host(model)
    state = attach(host.base)

    def stand_aside(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, KEYWORD: state.nowhere()}

    handles = [host.layers[layer].register_forward_pre_hook(stand_aside, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure_keeping(
    model: Any, windows: Tensor, candidates: Sequence[int], counts: Sequence[int], report: Report
) -> Curve:
    """Rank the layers of a calibrated model, and measure hybrids.

    Args:
        model: patched and calibrated.
        windows: token ids ``[w, n]``.
        candidates: the layers that are retrofitted.
        counts: numbers of layers to keep native.
    """
    host = find_host(model)
    with native_layers(model, candidates):
        loss, measure = _measure(model, host, windows)
        original = loss()
    alone = []
    total = len(candidates) + len(counts)
    for number, layer in enumerate(candidates):
        report(f"layer {layer} alone", number, total)
        with native_layers(model, [other for other in candidates if other != layer]):
            alone.append(loss())
    order = sorted(candidates, key=lambda layer: -alone[candidates.index(layer)])
    points = []
    for number, count in enumerate(counts):
        report(f"{count} native layers", len(candidates) + number, total)
        with native_layers(model, order[:count]):
            points.append((count, loss()))
    return Curve(tuple(order), tuple(alone), tuple(points), original, measure)


def _measure(model: Any, host: Host, windows: Tensor) -> tuple[Callable[[], float], str]:
    """A function that runs the model: its perplexity, or how far its last states are from those it has right now."""
    windows = windows.to(host.base.device)
    if predicts(model):
        return lambda: perplexity(model, windows) or float("nan"), "perplexity"
    before = [hidden_states(model, window[None]).float() for window in windows]
    size = sum(float(b.square().sum()) for b in before)

    def error() -> float:
        now = (hidden_states(model, window[None]).float() for window in windows)
        return float((sum(float((n - b).square().sum()) for n, b in zip(now, before, strict=True)) / size) ** 0.5)

    return error, "error"
