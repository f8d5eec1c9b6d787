"""The reference: the formula as it is written, in float64 if the inputs are, with the attention weights.

This is the one kernel that holds ``heads x q x k`` numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .call import Call


def eager_attention(call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[b, h, q, d]`` and attention weights ``[b, h, q, k]`` of a call."""
    b, h, q, d = call.query.shape
    g, k = call.key.shape[1], call.key.shape[2]
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32

    folded = call.query.reshape(b, g, call.groups * q, d)
    scores = torch.matmul(folded, call.key.transpose(2, 3)).view(b, h, q, k).to(wide) * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    bias = call.bias()
    if bias is not None:
        scores = scores + bias.to(wide)
    lowest = torch.finfo(wide).min
    if call.mask is not None and call.mask.dtype != torch.bool:
        scores = (scores + call.mask.to(wide)).clamp_min(lowest)
    else:
        allowed = call.allowed()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, lowest)
    if call.sinks is not None:
        sinks = call.sinks.to(wide).view(1, h, 1, 1).expand(b, h, q, 1)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = torch.nn.functional.dropout(weights, call.dropout, training=call.dropout > 0).to(call.value.dtype)
    output = torch.matmul(weights.view(b, g, call.groups * q, k), call.value)
    return output.view(b, h, q, call.value.shape[-1]), weights
