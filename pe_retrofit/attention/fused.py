"""Fused: PyTorch's attention for a call that adds nothing to the scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .call import Call

BLOCK = 768
"""Query rows at a time where the causal edge does not start at the first key and must be written as a mask."""


def single_query(call: Call, mask: Tensor | None) -> Tensor:
    """Decoding: the query heads that share a key head become rows of one matrix.

    PyTorch's CPU kernel would otherwise pass over the keys once per query head; in bfloat16 that is about eight times
    slower.

    Args:
        mask: ``[b or 1, h or 1, 1, k]``, bool or added to the scores, or None.
    """
    b, h, _, d = call.query.shape
    g = call.key.shape[1]
    if mask is not None and mask.shape[1] == h:
        mask = mask.reshape(mask.shape[0], g, call.groups, mask.shape[-1])
    output = scaled_dot_product_attention(
        call.query.reshape(b, g, call.groups, d),
        call.key,
        call.value,
        attn_mask=mask,
        dropout_p=call.dropout,
        scale=call.scaling,
    )
    return output.reshape(b, h, 1, call.value.shape[-1])


def fused_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call without bias, soft-cap and sinks."""
    q, k = call.query.shape[2], call.key.shape[2]
    if q == 1:
        return single_query(call, call.mask)
    square = call.mask is None and call.limit == 0 and q == k
    if call.mask is None and call.limit is not None and not square and q > BLOCK:
        parts = [fused_attention(call.rows(start, min(start + BLOCK, q))) for start in range(0, q, BLOCK)]
        return torch.cat(parts, dim=2)
    return scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=call.mask if call.mask is not None else (None if square else call.allowed()),
        is_causal=square and q > 1,
        dropout_p=call.dropout,
        scale=call.scaling,
        enable_gqa=call.groups > 1,
    )
