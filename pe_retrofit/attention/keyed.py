"""Keyed: scores of the key alone, folded into extra channels of queries and keys.

Softmax ignores what is constant along a row, so ``c_i - c_j`` needs only ``-c_j``. The key carries one number for each
query head that shares it, and the query picks its own. In half precision each number is split into parts whose sum is
exact to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .call import Call
from .fused import fused_attention

BLOCK = 2048
"""Query rows at a time, so that the numbers that matter to a row are small: they count from the block's last key."""

PARTS = 3
"""bfloat16 numbers that hold a float32."""


def keyed_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call whose scores all depend on the key alone; no biases, soft-cap and sinks."""
    block, rows = call.block(), call.query.shape[2]
    found = [part for encoding in call.scores if (part := encoding.key_bias(block)) is not None]
    total = sum(found[1:], start=found[0])
    outputs = []
    for start in range(0, rows, BLOCK):
        some = call.rows(start, min(start + BLOCK, rows)) if rows > BLOCK else call
        outputs.append(_attend(some, total[..., : some.key.shape[2]]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _attend(call: Call, bias: Tensor) -> Tensor:
    b, h, q, _ = call.query.shape
    g, k = call.key.shape[1], call.key.shape[2]
    dtype = call.query.dtype
    last = bias[..., -1:] if call.mask is None else bias.amax(-1, keepdim=True)
    values = ((bias - last) / call.scaling).view(b, g, call.groups, k).transpose(2, 3)  # [b, g, k, groups]
    parts = []
    for _ in range(1 if dtype in (torch.float32, torch.float64) else PARTS):
        parts.append(values.to(dtype))
        values = values - parts[-1].to(values.dtype)
    own = torch.eye(call.groups, dtype=dtype, device=bias.device).repeat(g, len(parts))  # [h, parts x groups]
    query = torch.cat((call.query, own[None, :, None].expand(b, h, q, -1)), -1)
    key = torch.cat((call.key, *parts), -1)
    width = query.shape[-1]
    extended = call.with_plain(query, key, pad(call.value, (0, width - call.value.shape[-1])))
    return fused_attention(extended)[..., : call.value.shape[-1]]
