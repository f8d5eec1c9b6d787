"""What a cache with a limited memory still holds.

A cache that forgets says so by two methods: each layer's ``held() -> (first, offset)``, the layer holds the tokens
``0 .. first - 1`` and ``offset ..`` of those it has seen; and each layer's ``fits(mask)``, which raises where padding
would take the place of what the layer keeps. The record of positions on such a cache forgets with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Held:
    """The tokens that the layers of a cache hold before a forward pass.

    Attributes:
        layers: per layer ``(first, offset)``: tokens ``0 .. first - 1`` and ``offset ..``.
    """

    layers: tuple[tuple[int, int], ...]

    @property
    def first(self) -> int:
        """Tokens that some layer holds from the start on."""
        return max(first for first, _ in self.layers)

    @property
    def offset(self) -> int:
        """Index of the first token after these that some layer holds."""
        return max(self.first, min(offset for _, offset in self.layers))

    @property
    def gap(self) -> int:
        """Tokens between them, which no layer holds."""
        return self.offset - self.first

    def cut(self, tokens: Tensor, gap: int = 0) -> Tensor:
        """Of ``[b, t]``, one entry per token seen less ``gap`` that were cut before, the columns some layer holds."""
        if self.gap == gap:
            return tokens
        return torch.cat((tokens[:, : self.first], tokens[:, self.offset - gap :]), dim=1)

    def of_layer(self, layer: int, cut: Tensor) -> Tensor:
        """Of what :meth:`cut` returned, the columns one layer holds, and all later ones."""
        first, offset = self.layers[layer]
        rest = cut[:, max(offset, first) - self.gap :]
        return torch.cat((cut[:, :first], rest), dim=1) if first else rest


def held_by(cache: Any) -> Held | None:
    """What the layers of a cache hold; None for caches that do not say so."""
    layers = getattr(cache, "layers", None)
    if not layers or not all(hasattr(layer, "held") for layer in layers):
        return None
    return Held(tuple(layer.held() for layer in layers))
