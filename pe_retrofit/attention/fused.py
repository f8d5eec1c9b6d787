"""Fused: PyTorch's attention for a call that adds nothing to the scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .call import Call

BLOCK = 768
"""Query rows at a time where the causal edge does not start at the first key and must be written as a mask."""


def fused_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call without bias, soft-cap and sinks."""
    q, k = call.query.shape[2], call.key.shape[2]
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
