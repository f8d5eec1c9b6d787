"""What a cache with a limited memory still holds.

A cache that forgets says so by ``held() -> (first, offset)`` on each of its layers: the layer holds the tokens
``0 .. first - 1`` and ``offset ..`` of those it has seen. The record of positions on such a cache forgets with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError


@dataclass(frozen=True)
class Held:
    """The tokens that the layers of a cache hold before a forward pass.

    Attributes:
        layers: per layer ``(first, offset)``: tokens ``0 .. first - 1`` and ``offset ..``.
        reach: beyond this distance the first tokens are all the same to a query, so what lies further can move up;
            None: positions stay as they are.
    """

    layers: tuple[tuple[int, int], ...]
    reach: int | None = None

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

    @property
    def shift(self) -> int:
        """How far all but the first tokens move up, so that angles stay small."""
        return 0 if self.reach is None else max(0, self.gap - self.reach)

    def moved(self, query: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """Positions ``[b, q]`` of the queries and of what :meth:`cut` returned, moved up."""
        if not self.shift:
            return query, cut
        return query - self.shift, torch.cat((cut[:, : self.first], cut[:, self.first :] - self.shift), dim=1)

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
    return Held(tuple(layer.held() for layer in layers), getattr(cache, "reach", None))


def check_plain(cache: Any, query: Tensor, mask: Tensor | None, past: int) -> None:
    """For a cache that keeps first tokens: each token's position must be its index.

    Args:
        query: int64 ``[b or 1, q]``.
        mask: 2D bool mask, or None.
        past: tokens seen.

    Raises:
        UnsupportedError: padding, or other positions.
    """
    sinks = getattr(cache, "sinks", 0)
    if not sinks:
        return
    if mask is not None and not bool(mask.all()):
        raise UnsupportedError(
            f"attention_mask hides tokens, and this cache keeps the first {sinks} of each row for ever: padding would "
            "take their place. Pass rows of equal length without padding, or one row at a time."
        )
    index = torch.arange(query.shape[1], device=query.device) + past
    if not bool((query == index).all()):
        raise UnsupportedError(
            f"position_ids must count on from the {past} tokens seen, because this cache keeps the first {sinks} "
            "tokens by their index. Leave position_ids out."
        )
