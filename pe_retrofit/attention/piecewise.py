"""Piecewise rotation: keys are cached unrotated, and each piece of the distances is rotated to positions of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..sites import Piece, PiecewiseEncoding
from .call import Call, Turned
from .rotate import rotate


class PiecewiseRotation(nn.Module):
    """Rotates a call piece by piece and runs it.

    Args:
        encoding: gives the pieces.
        inv_freq: ``[n]`` radians per token.
        scaling: factor on cos and sin.
    """

    def __init__(self, encoding: PiecewiseEncoding[Any], inv_freq: list[float], scaling: float) -> None:
        super().__init__()
        self.encoding = encoding
        self.frequencies = list(inv_freq)
        self.scaling = scaling

    @property
    def name(self) -> str:
        return self.encoding.config.name

    @torch.compiler.disable
    def forward(self, call: Call, attend: Callable[[Call], Tensor]) -> Tensor:
        """Output ``[b, h, q, d]``, by ``attend``."""
        inv_freq = torch.tensor(self.frequencies, dtype=torch.float32, device=call.query.device)
        pieces, alone = self._needed(call)
        call = replace(call, raw_query=call.query, raw_key=call.key)
        if call.query.shape[2] == 1 and not alone:
            return attend(self._one_query(call, pieces, inv_freq))
        turned: list[Turned] = []
        keys: dict[Tensor, Tensor] = {}
        for piece in pieces:
            at = piece.key(call.key_positions)
            known = next((k for k in keys if torch.equal(k, at)), None)
            if known is None:
                known = at
                keys[known] = rotate(call.key, at, inv_freq, self.scaling)
            query = rotate(call.query, piece.query(call.query_positions), inv_freq, self.scaling)
            turned.append(Turned(piece, query, keys[known]))
        call = replace(call, query=turned[0].query, key=turned[0].key)
        more: dict[str, Any] = {"partial": self.encoding.masks, "remapped": self.encoding.config}
        return attend(call if alone else replace(call, pieces=turned, **more))

    def _needed(self, call: Call) -> tuple[list[Piece], bool]:
        """The pieces that some pair may lie in, and whether the first holds every pair with ``i >= j``."""
        memo = ("pieces", self.encoding.config, call.query.shape[2], call.key.shape[2], call.first)
        shared: dict[Any, Any] = call.positions.shared
        if memo not in shared:
            i, j = call.query_positions, call.key_positions
            longest = int(i.amax() - j.amin())
            needed = []
            for piece in self.encoding.pieces():
                low, _ = piece.bounds(i)
                if bool((low <= longest).any()):
                    needed.append(piece)
            first = needed[0]
            _, high = first.bounds(i)
            alone = first.before is None and (high is None or bool((high > i - j.amin()).all()))
            shared[memo] = (needed[:1] if alone else needed, alone)
        return shared[memo]

    def _one_query(self, call: Call, pieces: list[Piece], inv_freq: Tensor) -> Call:
        """Decoding: each key is turned back by its own effective distance, so that one attention call does."""
        i, j = call.query_positions, call.key_positions
        rows = max(i.shape[0], j.shape[0])
        distance = torch.zeros(rows, j.shape[1], dtype=torch.float64, device=j.device)
        for piece in pieces:
            inside = piece.covers(i, j)[:, 0]
            distance = torch.where(inside, (piece.query(i) - piece.key(j)).to(distance.dtype), distance)
        query = rotate(call.query, torch.zeros_like(i), inv_freq, self.scaling)
        key = rotate(call.key, -distance, inv_freq, self.scaling)
        call = replace(call, query=query, key=key)
        return _restricted(call, pieces) if self.encoding.masks else call


def _restricted(call: Call, pieces: list[Piece]) -> Call:
    """The call with the pairs in no piece masked."""
    inside = torch.stack([p.covers(call.query_positions, call.key_positions) for p in pieces]).any(0)[:, None]
    if call.mask is None:
        allowed = call.allowed()
        mask = inside if allowed is None else inside & allowed
    elif call.mask.dtype == torch.bool:
        mask = inside & call.mask
    else:
        mask = call.mask.masked_fill(~inside, torch.finfo(call.mask.dtype).min)
    return replace(call, mask=mask, limit=None)
