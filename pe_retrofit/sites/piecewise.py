"""Piecewise rotation: RoPE on positions that are remapped, differently for near and for far keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .encoding import C, Encoding, HostShape

Bound = int | Callable[[Tensor], Tensor]
"""A number, or one for each query position."""


def _same(positions: Tensor) -> Tensor:
    return positions


@dataclass(frozen=True)
class Piece:
    """The pairs with ``low <= i - j < high`` (and ``j < before``), scored as if at other positions.

    Attributes:
        low, high: bounds of the distance, numbers or functions of the query positions; ``high=None``: no bound.
        before: only keys at smaller positions; None: all.
        query, key: the position that a query at ``i``, a key at ``j`` is rotated to (int64 or float64).
    """

    low: Bound = 0
    high: Bound | None = None
    before: int | None = None
    query: Callable[[Tensor], Tensor] = _same
    key: Callable[[Tensor], Tensor] = _same

    def bounds(self, query_positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """``low`` and ``high`` for each query, same shape as the positions."""

        def at(bound: Bound) -> Tensor:
            return bound(query_positions) if callable(bound) else torch.full_like(query_positions, bound)

        return at(self.low), None if self.high is None else at(self.high)

    def covers(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """bool ``[b, q, k]`` for positions ``[b, q]`` and ``[b, k]``."""
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        low, high = self.bounds(query_positions)
        inside = distance >= low[..., None]
        if high is not None:
            inside &= distance < high[..., None]
        if self.before is not None:
            inside &= (key_positions < self.before)[:, None, :]
        return inside


class PiecewiseEncoding(Encoding[C]):
    """Takes the place of a model's rotation: each piece of the distances is rotated to positions of its own.

    Keys are cached unrotated, so cached and uncached runs agree. Pairs in no piece are masked. Causal only.
    """

    site = "score"
    masks: ClassVar[bool] = False
    """Whether pairs with ``i >= j`` may lie in no piece."""

    def __init__(self, config: C, host: HostShape) -> None:
        self.config = config
        self.host = host

    @classmethod
    def faults(cls) -> list[str]:
        faults = super().faults()
        if cls.pieces is PiecewiseEncoding.pieces:
            faults.append("override pieces()")
        return faults

    def pieces(self) -> list[Piece]:
        """The pieces, which must not overlap for ``i >= j``. The first holds distance 0."""
        raise NotImplementedError(f"{type(self).__name__} must override pieces().")

    def effective(self, distance: int, query: int) -> float | None:
        """The distance that a pair at ``i = query``, ``j = query - distance`` is scored at; None when masked."""
        i, j = torch.tensor([[query]]), torch.tensor([[query - distance]])
        for piece in self.pieces():
            if bool(piece.covers(i, j)):
                return float((piece.query(i) - piece.key(j)).item())
        return None
