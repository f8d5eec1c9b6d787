"""Dense: the bias written out for a block of query rows at a time, as the mask of PyTorch's fused attention.

For biases that are no function of the distance, and for positions with gaps or several sequences in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .call import Call
from .fused import single_query
from .recomputed import recomputed

BUDGET = 2**23
"""Entries of a block's bias, over batch and heads: 32 MB in float32, which large caches hold."""

ROWS = 768
"""Query rows at a time at most: PyTorch's CPU kernel takes its widest tiles from there on."""

Bias = Callable[[Tensor, Tensor], Tensor]
"""``[b, h, q, k]`` for positions ``[b, q]`` and ``[b, k]``."""

TABLE_PAIRS = 2**17
"""Pairs of query and key from which on tables pay for themselves."""


def dense_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call with biases, no soft-cap, no sinks and no dropout."""
    trained = call.trains_bias or any(t.requires_grad for t in (call.query, call.key, call.value))
    if torch.is_grad_enabled() and trained:
        return recomputed(_attend_blocks, call)
    return _attend_blocks(call)


def _attend_blocks(call: Call) -> Tensor:
    b, h, q, _ = call.query.shape
    bias = _bias_function(call)
    rows = max(16, min(ROWS, BUDGET // max(1, b * h * call.key.shape[2])))
    starts = range(0, q, rows)
    # from the last block, which sees most keys, to the first: its memory does for all
    outputs = [_attend(call.rows(start, min(start + rows, q)), bias) for start in reversed(starts)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs[::-1], dim=2)


def _bias_function(call: Call) -> Bias:
    """The sum of the biases as a function of positions, free to be written into; through tables where that pays."""
    query, key = call.query_positions, call.key_positions
    pairs = query.shape[1] * key.shape[1]
    functions: list[Bias] = [partial(encoding.bias_at, causal=call.causal) for encoding in call.biases]
    if pairs >= TABLE_PAIRS and not torch.compiler.is_compiling():
        low, high = int(query.min() - key.max()), int(query.max() - key.min())
        if high - low < pairs:
            distances = torch.arange(low, high + 1, device=query.device)
            functions = [encoding.fast(distances, causal=call.causal) for encoding in call.biases]
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32

    def bias(query_positions: Tensor, key_positions: Tensor) -> Tensor:
        first, *others = (function(query_positions, key_positions).to(wide) for function in functions)
        total = first.clone() if 0 in first.stride() else first
        for other in others:
            total += other
        return total

    return bias


def _attend(call: Call, bias: Bias) -> Tensor:
    added = bias(call.query_positions, call.key_positions)
    lowest = torch.finfo(added.dtype).min
    rows, keys = call.query.shape[2], call.key.shape[2]
    if call.mask is not None and call.mask.dtype != torch.bool:
        added = (added + call.mask).clamp_min_(lowest)
    elif call.mask is not None:
        added = added.masked_fill(~call.mask, lowest)
    elif call.limit is not None and call.limit < keys - 1:
        future = torch.ones(rows, keys - call.limit - 1, dtype=torch.bool, device=added.device).triu_()
        added[..., call.limit + 1 :].masked_fill_(future, lowest)
    if rows == 1:
        return single_query(call, added)
    return scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=added, scale=call.scaling, enable_gqa=call.groups > 1
    )
