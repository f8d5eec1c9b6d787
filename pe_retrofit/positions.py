"""What position every query and key has. One place, used by all encodings.

Positions come from ``position_ids``, the padding mask and the cache, never from a shape alone. A forward pass of the
base model calls :func:`resolve` once; the result travels to every layer as a keyword argument (so it survives gradient
checkpointing) and answers for each layer, whatever part of the past that layer's cache still holds.

The positions of cached tokens are remembered on the cache itself, so skipped, packed or padded positions stay right
when decoding goes on. A cache that was filled by something else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError
from .held import Held, check_plain, held_by

KEYWORD = "position_encoding_context"
"""Name of the keyword argument that carries :class:`Positions` through a model."""

STRENGTH = "_position_encoding_strength"
"""Attribute of a base model and of its attentions, once its patch was weakened: how much of it is in force."""

FADING = "_position_encoding_fading"
"""Attribute of an attention: how it rotates inside while a patch that sees unrotated queries is partly in force."""

_RECORD = "_position_encoding_tokens"
_GAP = "_position_encoding_gap"
"""On a cache that forgets: how many tokens its record leaves out, after the first ones it keeps."""
_COUNTED = "_position_encoding_counted"
"""On a cache: every recorded position is the count of real tokens in the mask, so the next mask says them all again,
for whatever rows the batch then has."""


@dataclass
class Positions:
    """Positions of one forward pass.

    Attributes:
        query: int64 ``[b or 1, q]``.
        tokens: int64 ``[b or 1, t]``, every token so far; a static cache's unfilled slots hold zeros, and where a cache
            forgets, only what it holds and the new tokens are here.
        first_query: index of the first query among the tokens (a tensor under ``torch.compile`` with a static cache).
        contiguous: wherever attention is allowed, ``i - j`` equals the difference of token indices.
        sliding: per cache layer whether it keeps a window only.
        window_offset: index of the first token the sliding layers hold during this pass.
        counted: the positions are the counts of real tokens in the 2D mask.
        packed: row and index of the first token of the first sequence that a packed input starts after another one.
        weights: the caller asked for attention weights (some layers keep that from their attention).
        held: what a cache that forgets holds before this pass; None for others.
        real: bool ``[b, t]`` from the 2D mask, all tokens seen so far at least; None without one.
        strength: how much of the patch is in force during this pass: 1 all of it, 0 the model as it was before.
        native_attention: the attention implementation of the model as it was before.
        shared: results that layers share within this pass.
    """

    query: Tensor
    tokens: Tensor
    first_query: int | Tensor
    contiguous: bool
    sliding: tuple[bool, ...] = ()
    window_offset: int = 0
    counted: bool = False
    packed: tuple[int, int] | None = None
    weights: bool = False
    held: Held | None = None
    real: Tensor | None = None
    strength: float = 1.0
    native_attention: str = ""
    shared: dict[Any, Any] = field(default_factory=dict)

    def ordered(self) -> bool:
        """Whether no token has a smaller position than the one before it; taken for granted while compiling."""
        if torch.compiler.is_compiling() or not isinstance(self.first_query, int):
            return True
        if "ordered" not in self.shared:
            tokens = self.tokens[:, : self.first_query + self.query.shape[1]]
            self.shared["ordered"] = bool((tokens.diff(dim=1) >= 0).all())
        return self.shared["ordered"]

    def first_key(self, layer_idx: int | None) -> int:
        """Index among all tokens so far of the first key that a layer sees."""
        if self.held is not None and layer_idx is not None:
            first, offset = self.held.layers[layer_idx]
            return 0 if first else offset
        if layer_idx is not None and layer_idx < len(self.sliding) and self.sliding[layer_idx]:
            return self.window_offset
        return 0

    def keys(self, layer_idx: int | None, length: int) -> Tensor:
        """int64 ``[b or 1, length]``: positions of the keys a layer attends to.

        Raises:
            UnsupportedError: the layer holds more keys than there are tokens.
        """
        if self.held is not None and layer_idx is not None:
            return self._held_keys(self.held, layer_idx, length)
        start = self.first_key(layer_idx)
        tokens = self.tokens[:, start : start + length]
        missing = length - tokens.shape[1]
        if missing and isinstance(self.first_query, int) and start == 0 and not self.sliding:
            raise UnsupportedError(
                f"A layer attends to {length} keys, but only {self.tokens.shape[1]} tokens were seen, so the positions "
                "of its keys are unknown. Fill the cache with the patched model itself, or run without one."
            )
        if missing:  # slots of a static cache that are not filled yet, and masked
            tokens = torch.nn.functional.pad(tokens, (0, missing))
        return tokens

    def _held_keys(self, held: Held, layer_idx: int, length: int) -> Tensor:
        tokens = held.of_layer(layer_idx, self.tokens)
        if tokens.shape[1] != length:
            raise UnsupportedError(
                f"Layer {layer_idx} attends to {length} keys, but its cache holds {tokens.shape[1]} with the new ones: "
                "the model did not use the cache (as under gradient checkpointing), or what it holds was changed from "
                "outside. Call model.gradient_checkpointing_disable(), or run without a cache."
            )
        return tokens


def resolve(
    *,
    query_length: int,
    batch_size: int,
    device: torch.device,
    position_ids: Tensor | None = None,
    attention_mask: Any = None,
    cache: Any = None,
    packs_by_position: bool = False,
) -> Positions:
    """Positions of one forward pass.

    Args:
        query_length, batch_size: shape of the input.
        device: where positions are needed.
        position_ids: int ``[b or 1, q]`` as the caller gave them, or None.
        attention_mask: 2D ``[b, past + q]`` with 1 for real tokens, or anything else a model accepts (not used then).
        cache: a transformers cache, or None.
        packs_by_position: the model masks sequences from each other where ``position_ids`` restart (only without a
            mask and a cache, as transformers' decoders do).

    Raises:
        UnsupportedError: ``position_ids`` are not 2D (multimodal rotary positions), the mask covers too few tokens, or
            the cache holds tokens whose positions this model has not seen.
    """
    if position_ids is not None and position_ids.dim() == 1:
        position_ids = position_ids[None]
    if position_ids is not None and (position_ids.dim() != 2 or position_ids.shape[-1] != query_length):
        raise UnsupportedError(
            f"position_ids of shape {tuple(position_ids.shape)} do not fit an input of {query_length} tokens: one "
            "position per token, [batch, tokens], is needed (multimodal 3D positions are not supported)."
        )
    cache = getattr(cache, "self_attention_cache", cache)  # an encoder-decoder cache holds two
    past = cache.get_seq_length() if cache is not None else 0
    static = cache is not None and getattr(cache, "is_compileable", False) and not all(_sliding(cache))
    held = held_by(cache)
    compiling = torch.compiler.is_compiling()
    if isinstance(past, Tensor) and not compiling:
        past = int(past)

    mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
    if mask is not None:
        mask = mask.to(device=device, dtype=torch.bool)
    query = _query_positions(position_ids, mask, past, query_length, device)
    if held is not None:
        check_plain(cache, query, mask, past)
    counts: Tensor | None = None
    if mask is not None and isinstance(past, int) and mask.shape[1] == past + query_length:
        counts = _counts(mask)
        if position_ids is not None and not _follow(query, counts[:, past:], mask[:, past:]):
            counts = None

    if cache is None:
        tokens = query
    elif static:
        tokens = _record_static(cache, query, past, counts, batch_size)
    else:
        tokens = _record_dynamic(cache, query, past, counts, batch_size, held)

    packed: tuple[int, int] | None = None
    if position_ids is None and mask is None and cache is None:
        contiguous = True
    elif packs_by_position and mask is None and attention_mask is None and cache is None:
        contiguous = True  # every break starts a sequence that the model masks from the others
        packed = None if compiling else _first_break(query)
    elif compiling:
        contiguous = False  # would need to look at values
    else:
        seen = mask if mask is None or held is None else held.cut(mask)
        contiguous = _contiguous(tokens[:, : past + query_length], seen)

    if held is not None:
        query, tokens = held.moved(query, tokens)
    sliding: tuple[bool, ...] = ()
    window_offset = 0
    if cache is not None:
        sliding = _sliding(cache)
        if True in sliding:
            window_offset = int(cache.get_mask_sizes(query_length, sliding.index(True))[1])
    return Positions(
        query, tokens, past, contiguous, sliding, window_offset, counts is not None, packed, held=held, real=mask
    )


def remember(cache: Any, positions: Positions) -> None:
    """Record a pass on a cache that the model made itself in that pass."""
    if not hasattr(cache, _RECORD):
        setattr(cache, _RECORD, positions.query)
        setattr(cache, _COUNTED, positions.counted)


def declare(cache: Any, position_ids: Tensor) -> None:
    """Say which positions the tokens of a cache have that was filled elsewhere.

    Args:
        cache: a transformers cache holding ``n`` tokens.
        position_ids: int ``[b or 1, n]``.

    Raises:
        UnsupportedError: the shape does not fit the cache.
    """
    held = int(cache.get_seq_length())
    if position_ids.dim() != 2 or position_ids.shape[1] != held:
        raise UnsupportedError(
            f"position_ids of shape {tuple(position_ids.shape)} do not fit a cache of {held} tokens: [batch, {held}]."
        )
    position_ids = position_ids.long()
    if getattr(cache, "is_compileable", False) and not all(_sliding(cache)):
        position_ids = torch.nn.functional.pad(position_ids, (0, _static_size(cache) - held))
    setattr(cache, _RECORD, position_ids)
    setattr(cache, _GAP, 0)
    setattr(cache, _COUNTED, False)


def _query_positions(
    position_ids: Tensor | None, mask: Tensor | None, past: int | Tensor, length: int, device: torch.device
) -> Tensor:
    if position_ids is not None:
        return position_ids.to(device=device, dtype=torch.long)
    index = torch.arange(length, device=device) + past
    if mask is None:
        return index[None]
    if isinstance(past, int) and mask.shape[1] < past + length:
        raise UnsupportedError(
            f"attention_mask of shape {tuple(mask.shape)} does not cover all {past + length} tokens: {past} in the "
            f"cache and {length} new ones. Pass the mask of all of them, or position_ids."
        )
    return _counts(mask)[:, index]


def _counts(mask: Tensor) -> Tensor:
    """Real tokens before each token of a 2D bool mask: int64, same shape."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


def _follow(query: Tensor, counts: Tensor, real: Tensor) -> bool:
    """Whether positions are the counts, wherever tokens are real; unknown while compiling, which counts as no."""
    if torch.compiler.is_compiling() or query.shape[0] not in (1, counts.shape[0]):
        return False
    return bool(((query == counts) | ~real).all())


def _sliding(cache: Any) -> tuple[bool, ...]:
    return tuple(bool(getattr(layer, "is_sliding", False)) for layer in cache.layers)


def _static_size(cache: Any) -> int:
    return max(layer.max_cache_len for layer in cache.layers if not getattr(layer, "is_sliding", False))


def _refuse_unseen(held: int, seen: int) -> None:
    raise UnsupportedError(
        f"The cache holds {held} tokens, of which this model has seen {seen}: the positions of the others are unknown. "
        "Fill the cache with the patched model, or say them: pe_retrofit.positions.declare(cache, position_ids)."
    )


def _record_static(cache: Any, query: Tensor, past: int | Tensor, counts: Tensor | None, batch_size: int) -> Tensor:
    """A static cache keeps token t in slot t, so does its record; written in place, as compiled code needs."""
    record = getattr(cache, _RECORD, None)
    empty = isinstance(past, int) and past == 0
    if record is None and isinstance(past, int) and past > 0:
        _refuse_unseen(past, 0)
    if record is None or (empty and record.shape[0] != batch_size):
        record = torch.zeros(batch_size, _static_size(cache), dtype=torch.long, device=query.device)
        setattr(cache, _RECORD, record)
    if not torch.compiler.is_compiling():
        setattr(cache, _COUNTED, counts is not None and (empty or getattr(cache, _COUNTED, False)))
        if getattr(cache, _COUNTED) and counts is not None:
            record[:, : counts.shape[1]] = counts
            return record
    slots = torch.arange(query.shape[1], device=query.device) + past
    record.index_copy_(1, slots, query.expand(record.shape[0], -1))
    return record


def _record_dynamic(
    cache: Any, query: Tensor, past: int, counts: Tensor | None, batch_size: int, held: Held | None
) -> Tensor:
    record: Tensor | None = getattr(cache, _RECORD, None)
    gap = getattr(cache, _GAP, 0)
    seen = 0 if record is None else record.shape[1] + gap
    if past > seen:
        _refuse_unseen(past, seen)
    counted = counts is not None and (past == 0 or getattr(cache, _COUNTED, False))
    if counted and counts is not None:
        tokens, gap = counts, 0
    elif past == 0 or record is None:
        tokens, gap = query, 0
    else:
        record, query = _same_rows(record[:, : past - gap].to(query.device), query, batch_size)
        tokens = torch.cat((record, query), dim=1)
    if held is not None:
        tokens = held.cut(tokens, gap)
        setattr(cache, _GAP, held.gap)
    setattr(cache, _RECORD, tokens)
    setattr(cache, _COUNTED, counted)
    return tokens


def _same_rows(record: Tensor, query: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Bring record and query to one row count; the batch may have been repeated or thinned since."""
    rows = record.shape[0]
    if rows == query.shape[0] == batch_size:
        return record, query
    if rows == 1 or torch.equal(record, record[:1].expand(rows, -1)):
        return record[:1].expand(query.shape[0], -1), query
    if rows == batch_size:
        return record, query.expand(rows, -1)
    raise UnsupportedError(
        f"The cache was filled with {rows} rows of different positions and now meets {batch_size} rows; which row is "
        "which is unknown. Pass the 2D attention_mask from which the positions follow in every call, or keep the batch "
        "as it was."
    )


def _first_break(query: Tensor) -> tuple[int, int] | None:
    """Row and index of the first token whose position does not follow the one before it."""
    breaks = (query.diff(dim=1) != 1).nonzero()
    return (int(breaks[0, 0]), int(breaks[0, 1]) + 1) if len(breaks) else None


def _contiguous(tokens: Tensor, mask: Tensor | None) -> bool:
    """Whether position minus index is one constant per row, over the real tokens."""
    shift = tokens - torch.arange(tokens.shape[1], device=tokens.device)
    if mask is None:
        return bool((shift == shift[:, :1]).all())
    real = mask[:, : tokens.shape[1]]
    if real.shape[1] != tokens.shape[1]:
        return False
    far = torch.iinfo(torch.long).max
    low = torch.where(real, shift, far).amin(1)
    high = torch.where(real, shift, -far).amax(1)
    return bool((low >= high).all())
