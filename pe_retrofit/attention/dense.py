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

BUDGET = 2**24
"""Entries of a block's bias, over batch and heads: 64 MB in float32."""

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
    rows = max(16, BUDGET // max(1, b * h * call.key.shape[2]))
    parts = [call.rows(start, min(start + rows, q)) for start in range(0, q, rows)] if rows < q else [call]
    outputs = [_attend(part, bias(part.query_positions, part.key_positions)) for part in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _bias_function(call: Call) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum of the biases as a function of positions; through tables where there are many pairs."""
    query, key = call.query_positions, call.key_positions
    pairs = query.shape[1] * key.shape[1]
    single: list[Callable[[Tensor, Tensor], Tensor]]
    single = [partial(encoding.bias_at, causal=call.causal) for encoding in call.biases]
    if pairs >= TABLE_PAIRS and not torch.compiler.is_compiling():
        low, high = int(query.min() - key.max()), int(query.max() - key.min())
        if high - low < pairs:
            distances = torch.arange(low, high + 1, device=query.device)
            single = [encoding.fast(distances, causal=call.causal) for encoding in call.biases]

    def bias(query_positions: Tensor, key_positions: Tensor) -> Tensor:
        first, *others = (function(query_positions, key_positions) for function in single)
        return sum(others, first)

    return bias


def _attend(call: Call, bias: Tensor) -> Tensor:
    bias = bias.to(torch.float64 if call.query.dtype == torch.float64 else torch.float32)
    lowest = torch.finfo(bias.dtype).min
    if call.mask is not None and call.mask.dtype != torch.bool:
        bias = (bias + call.mask).clamp_min(lowest)
    elif (allowed := call.allowed()) is not None:
        bias = bias.masked_fill(~allowed, lowest)
    if call.query.shape[2] == 1:
        return single_query(call, bias)
    return scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=bias, scale=call.scaling, enable_gqa=call.groups > 1
    )
