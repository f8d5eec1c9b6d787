"""Separable: a causal ``-slope * (i - j)`` folded into extra channels of queries and keys.

Softmax ignores what is constant along a row, so ``slope * j`` in the keys is enough: the query gets the slope, the key
its position, and plain fused attention runs with no bias at all. In half precision the position is split into base-256
digits and the slope into a head and a rest, each exact, so the products lose nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from .call import Call

DIGITS = 3
"""Base-256 digits of a position: enough for 2^24 tokens."""


BLOCK = 2048
"""Query rows at a time in float32, so that the positions that matter to a row are small numbers: the error would grow
with the distance to the last key otherwise."""


def separable_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a causal call whose biases all have slopes; no soft-cap and no sinks."""
    b, h, q, d = call.query.shape
    if q > BLOCK and call.query.dtype == torch.float32 and call.limit is not None:
        return torch.cat([separable_attention(call.rows(i, min(i + BLOCK, q))) for i in range(0, q, BLOCK)], dim=2)
    g, k = call.key.shape[1], call.key.shape[2]
    dtype = call.query.dtype
    found = [encoding.slopes() for encoding in call.biases]
    slopes = torch.stack([s.to(call.query.device) for s in found if s is not None]).sum(0) / call.scaling

    last = call.key_positions.amax(1, keepdim=True)
    offset = last - call.key_positions.clamp_min(0)  # tokens before the last key: small numbers where it matters
    if dtype in (torch.float32, torch.float64):
        digits = [-offset.to(dtype)]
        parts = [slopes.to(dtype)]
    else:
        base = [offset.div(256**n, rounding_mode="floor") % 256 for n in range(DIGITS)]
        digits = [-(digit * min(256**n, 256)).to(dtype) for n, digit in enumerate(base)]
        head = slopes.to(dtype)
        parts = [head, (slopes - head.to(slopes.dtype)).to(dtype)]
    channels = len(digits) * len(parts)
    powers = [max(1, 256 ** (n - 1)) for n in range(len(digits))]  # the query's share: float16 ends at 65504
    extra_key = torch.stack(digits * len(parts), -1)[:, None].expand(b, g, k, channels)
    extra_query = torch.stack([p * n for p in parts for n in powers], -1)[None, :, None].expand(b, h, q, channels)
    width = -(-(d + channels) // 8) * 8 if call.query.device.type == "cuda" else d + channels
    fill = width - d - channels
    query = pad(torch.cat((call.query, extra_query), -1), (0, fill))
    key = pad(torch.cat((call.key, extra_key), -1), (0, fill))
    value = pad(call.value, (0, width - call.value.shape[-1]))

    square = call.mask is None and call.limit == 0 and q == k
    mask = call.mask if call.mask is not None else (None if square else call.allowed())
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=square and q > 1,
        dropout_p=call.dropout,
        scale=call.scaling,
        enable_gqa=call.groups > 1,
    )
    return output[..., : call.value.shape[-1]]
