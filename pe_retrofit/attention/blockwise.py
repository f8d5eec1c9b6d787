"""Blockwise: the reference by blocks of queries, recomputed in the backward pass.

Carries everything (any bias, soft-capping, sinks, dropout, gradients to the bias) with memory ``O(block * k)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .call import Call, tensors_of
from .reference import eager_attention

BUDGET = 2**24
"""Scores held at once, over batch and heads: 64 MB in float32."""


def block_length(call: Call, budget: int = BUDGET) -> int:
    """How many query rows fit the budget; at least 16. What queries and keys add to the scores takes a few as many."""
    b, h = call.query.shape[:2]
    budget = budget // 4 if call.scores else budget
    return max(16, min(call.query.shape[2], budget // max(1, b * h * call.key.shape[2])))


def blockwise_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call."""
    length, block = call.query.shape[2], block_length(call)
    if block >= length:
        return eager_attention(call)[0]
    needs_grad = call.trains
    outputs = []
    for start in range(0, length, block):
        part = call.rows(start, min(start + block, length))
        if needs_grad:
            outputs.append(checkpoint(_output, part, *tensors_of(part), use_reentrant=False))
        else:
            outputs.append(eager_attention(part)[0])
    return torch.cat(outputs, dim=2)


def _output(part: Call, *tensors: Tensor) -> Tensor:
    """The tensors are arguments too, so that the checkpoint knows what it holds."""
    return eager_attention(part)[0]
