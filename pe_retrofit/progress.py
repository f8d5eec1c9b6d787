"""How far a run is, in units of estimated work, counted layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .patchers.family import find_host

Report = Callable[[str, float, float], None]
"""Called with what is going on, the work done and the work in all."""

QUADRATIC_FROM = 5000
"""Length at which attention costs as much as everything else (SmolLM2's shape on a CPU); only the bar depends on it."""


def forward_cost(length: int) -> float:
    """Estimated work of one forward over so many tokens; a token of a short text is 1."""
    return length * (1 + length / QUADRATIC_FROM)


class Work:
    """Work done out of a known total."""

    def __init__(self, total: float, report: Report | None) -> None:
        self.total = total
        self.done = 0.0
        self.report = report or (lambda text, done, total: None)
        self.text = ""

    def say(self, text: str) -> None:
        """Name what starts now."""
        self.text = text
        self.report(self.text, self.done, self.total)

    def advance(self, amount: float) -> None:
        """Count work as done."""
        self.done = min(self.total, self.done + amount)
        self.report(self.text, self.done, self.total)

    @contextmanager
    def forwards(self, model: nn.Module, length: int) -> Iterator[None]:
        """Count every layer of the forwards of ``length`` tokens run within; other lengths do not count."""
        layers = find_host(model).layers
        share = forward_cost(length) / len(layers)
        handles = [layer.register_forward_hook(lambda *_: self.advance(share)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def part(self, model: nn.Module, amount: float) -> Iterator[None]:
        """A part of so much work, told layer by layer by the tokens that pass; done when the block ends."""
        start, layers = self.done, find_host(model).layers

        def passed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            seen = states.shape[0] * forward_cost(states.shape[1]) / len(layers)
            self.advance(min(seen, start + amount - self.done))

        handles = [layer.register_forward_pre_hook(passed, with_kwargs=True) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.advance(start + amount - self.done)
