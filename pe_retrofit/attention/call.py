"""Everything one attention call needs, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import EncodingConfig
from ..positions import Positions
from ..sites import BiasEncoding, Block, Piece, ScoreEncoding


@dataclass(frozen=True)
class Turned:
    """Queries ``[b, h, q, d]`` and keys ``[b, g, k, d]`` as one piece of a piecewise rotation sees them."""

    piece: Piece
    query: Tensor
    key: Tensor


@dataclass(frozen=True)
class Call:
    """One attention call, normalised.

    Attributes:
        query: ``[b, h, q, d]``.
        key, value: ``[b, g, k, d]``; ``h / g`` query heads share one key head, which is never repeated.
        mask: bool ``[b or 1, 1, q, k]``, True where attention is allowed; or float, added to the scores; or None.
        causal: whether encodings treat the attention as causal.
        limit: with ``mask=None`` and ``causal``, query row r sees the keys ``0 .. r + limit``; None: all of them.
        scaling: factor on the scores.
        dropout: probability, 0 outside training.
        softcap: Gemma 2's ``c * tanh(score / c)``, before bias and mask; or None.
        sinks: ``[h]`` logits of an extra key with value 0 (attention sinks); or None.
        query_positions, key_positions: int64 ``[b or 1, q]`` and ``[b or 1, k]``.
        shift: with contiguous positions, the distance of query row 0 and key column 0; None otherwise.
        biases: what to add to the scores.
        positions: of the whole forward pass.
        scores: what to add to ``q . k``, from unrotated queries and keys.
        raw_query, raw_key: these, where ``query`` and ``key`` are rotated; None where they are not.
        pieces: piecewise rotation; ``q . k`` then comes from these.
        partial: pairs in no piece are masked.
        remapped: options of the encoding that the pieces come from.
        first: index among the keys of query row 0.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    limit: int | None
    scaling: float
    dropout: float
    softcap: float | None
    sinks: Tensor | None
    query_positions: Tensor
    key_positions: Tensor
    shift: int | None
    biases: Sequence[BiasEncoding]
    positions: Positions
    scores: Sequence[ScoreEncoding] = ()
    raw_query: Tensor | None = None
    raw_key: Tensor | None = None
    pieces: Sequence[Turned] = ()
    partial: bool = False
    remapped: EncodingConfig | None = None
    first: int | Tensor = 0

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.query.shape[1] // self.key.shape[1]

    def rows(self, start: int, stop: int) -> Call:
        """The call for query rows ``start .. stop`` only, with the keys that no row of them sees cut off."""
        limit, keys = self.limit, self.key.shape[2]
        if limit is not None:
            limit += start
            keys = min(keys, stop - start + limit)
        mask = self.mask
        if mask is not None:
            mask = mask[:, :, start:stop] if mask.shape[2] > 1 else mask
            mask = mask[..., :keys] if mask.shape[3] > 1 else mask
        return replace(
            self,
            query=self.query[:, :, start:stop],
            key=self.key[:, :, :keys],
            raw_query=None if self.raw_query is None else self.raw_query[:, :, start:stop],
            raw_key=None if self.raw_key is None else self.raw_key[:, :, :keys],
            pieces=[Turned(p.piece, p.query[:, :, start:stop], p.key[:, :, :keys]) for p in self.pieces],
            first=self.first + start,
            value=self.value[:, :, :keys],
            mask=mask,
            limit=limit,
            query_positions=self.query_positions[:, start:stop],
            key_positions=self.key_positions[:, :keys],
            shift=None if self.shift is None else self.shift + start,
        )

    def batch(self, row: int) -> Call:
        """The call for one row of the batch."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor[row : row + 1] if tensor.shape[0] > 1 else tensor

        return replace(
            self,
            query=pick(self.query),
            key=pick(self.key),
            raw_query=None if self.raw_query is None else pick(self.raw_query),
            raw_key=None if self.raw_key is None else pick(self.raw_key),
            pieces=[Turned(p.piece, pick(p.query), pick(p.key)) for p in self.pieces],
            value=pick(self.value),
            mask=None if self.mask is None else pick(self.mask),
            query_positions=pick(self.query_positions),
            key_positions=pick(self.key_positions),
        )

    def allowed(self) -> Tensor | None:
        """bool mask ``[b or 1, 1, q, k]`` of this call, or None where every key is visible."""
        if self.mask is not None:
            return self.mask if self.mask.dtype == torch.bool else None
        q, k = self.query.shape[2], self.key.shape[2]
        if self.limit is None or self.limit >= k - 1:
            return None
        rows = torch.arange(q, device=self.query.device)[:, None] + self.limit
        return (torch.arange(k, device=self.query.device) <= rows)[None, None]

    def bias(self) -> Tensor | None:
        """Sum of the biases for this call, ``[b or 1, h, q, k]``, float32 or wider; None without any."""
        total: Tensor | None = None
        for encoding in self.biases:
            part = encoding.bias_at(self.query_positions, self.key_positions, causal=self.causal)
            total = part if total is None else total + part
        return total

    def _visible(self) -> Tensor | None:
        """Like :meth:`allowed`, from a mask that is added to the scores too."""
        additive = self.mask is not None and self.mask.dtype != torch.bool
        return _open(self.mask) if additive and self.mask is not None else self.allowed()

    def block(self) -> Block:
        """What score encodings see of this call."""
        return Block(
            query=self.query if self.raw_query is None else self.raw_query,
            key=self.key if self.raw_key is None else self.raw_key,
            query_positions=self.query_positions,
            key_positions=self.key_positions,
            causal=self.causal,
            scaling=self.scaling,
            visible=self._visible,
            first=self.first,
        )

    def with_plain(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        """Attention under the same mask, with nothing added."""
        return replace(self, query=query, key=key, value=value, biases=(), scores=(), raw_query=None, raw_key=None)

    @property
    def trains_bias(self) -> bool:
        """Whether a gradient must reach parameters of a bias."""
        return any(encoding.trains for encoding in self.biases)

    @property
    def trains(self) -> bool:
        """Whether a gradient must reach anything."""
        tensors = [self.query, self.key, self.value]
        modules: list[BiasEncoding | ScoreEncoding] = [*self.biases, *self.scores]
        return torch.is_grad_enabled() and (
            any(t.requires_grad for t in tensors) or any(encoding.trains for encoding in modules)
        )


def _open(mask: Tensor) -> Tensor:
    """Where a mask that is added to the scores leaves a pair visible: -inf, the lowest number and -1e4 mask."""
    return mask > -5e3


def tensors_of(call: Call) -> list[Tensor]:
    """What a call computes with: queries, keys and values in all their forms."""
    tensors = [call.query, call.key, call.value, *(t for p in call.pieces for t in (p.query, p.key))]
    return tensors + [t for t in (call.raw_query, call.raw_key) if t is not None]


def with_tensors(call: Call, tensors: Sequence[Tensor]) -> Call:
    """The call with other tensors, in the order of :func:`tensors_of`."""
    left = iter(tensors)
    query, key, value = next(left), next(left), next(left)
    pieces = [Turned(p.piece, next(left), next(left)) for p in call.pieces]
    raw_query = None if call.raw_query is None else next(left)
    raw_key = None if call.raw_key is None else next(left)
    return replace(call, query=query, key=key, value=value, pieces=pieces, raw_query=raw_query, raw_key=raw_key)
