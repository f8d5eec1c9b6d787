"""Gradients of attention with a learned Toeplitz bias, by blocks of queries.

PyTorch's fused kernels give no gradient to a mask. Forward is the fused kernel all the same; backward recomputes the
weights block by block and sums the score gradient along its anti-diagonals, with memory ``O(block * k)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BUDGET = 2**23
"""Scores held at once in the backward pass, over batch and heads."""

Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class LearnedToeplitz(torch.autograd.Function):
    """``(query [b,h,q,d], key [b,g,k,d], value, vector [h, q+k-1], mask, limit, scaling, forward) -> [b,h,q,d]``."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        vector: Tensor,
        mask: Tensor | None,
        limit: int | None,
        scaling: float,
        forward: Forward,
    ) -> Tensor:
        output = forward(query, key, value, vector)
        ctx.save_for_backward(query, key, value, vector, mask, output)
        ctx.limit, ctx.scaling = limit, scaling
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, vector, mask, output = ctx.saved_tensors
        b, h, q, d = query.shape
        g, k = key.shape[1], key.shape[2]
        wide = vector.dtype
        flipped = [t.flip(2) for t in (query, grad, output)]
        if mask is not None and mask.shape[2] > 1:
            mask = mask.flip(2)
        grad_query = torch.empty_like(query)
        grad_key = torch.zeros(key.shape, dtype=wide, device=key.device)
        grad_value = torch.zeros(value.shape, dtype=wide, device=value.device)
        grad_vector = torch.zeros_like(vector)
        block = max(16, min(q, BUDGET // max(1, b * h * k)))
        for start in range(0, q, block):
            rows = min(block, q - start)
            keys = k if ctx.limit is None or mask is not None else min(k, q + ctx.limit - start)
            near, values = key[:, :, :keys], value[:, :, :keys]
            q_part, g_part, o_part = (_fold(t[:, :, start : start + rows], g) for t in flipped)
            bias = vector.as_strided((1, h, rows, keys), (0, vector.stride(0), 1, 1), start)
            scores = torch.matmul(q_part, near.transpose(2, 3)).view(b, h, rows, keys).to(wide)
            scores = scores.mul_(ctx.scaling).add_(bias)
            if mask is not None:
                part = mask[:, :, start : start + rows, :keys] if mask.shape[2] > 1 else mask[..., :keys]
                lowest = torch.finfo(wide).min
                if part.dtype == torch.bool:
                    scores = scores.masked_fill(~part, lowest)
                else:
                    scores = (scores + part).clamp_min(lowest)
            weights = scores.softmax(-1)
            grad_value[:, :, :keys] += torch.matmul(_fold(weights.to(value.dtype), g).transpose(2, 3), g_part)
            grad_weights = torch.matmul(g_part, values.transpose(2, 3)).view(b, h, rows, keys)
            inner = (g_part * o_part).sum(-1, dtype=wide).view(b, h, rows, 1)
            grad_scores = weights.mul_(grad_weights.to(wide).sub_(inner))
            grad_vector[:, start : start + rows + keys - 1] += _anti_diagonals(grad_scores.sum(0))
            folded = _fold(grad_scores.to(key.dtype), g)
            grad_query[:, :, start : start + rows] = torch.matmul(folded, near).view(b, h, rows, d) * ctx.scaling
            grad_key[:, :, :keys] += torch.matmul(folded.transpose(2, 3), q_part) * ctx.scaling
        nothing = (None, None, None, None)
        return grad_query.flip(2), grad_key.to(key.dtype), grad_value.to(value.dtype), grad_vector, *nothing


def _fold(states: Tensor, groups: int) -> Tensor:
    """``[b, h, q, n]`` to ``[b, g, h/g * q, n]``: heads that share a key head become rows."""
    b, h, q, n = states.shape
    return states.reshape(b, groups, h // groups * q, n)


def _anti_diagonals(matrix: Tensor) -> Tensor:
    """Sums over ``r + j`` of ``[h, r, j]``: ``[h, r + j - 1]``. Row r is shifted by r, then columns are summed."""
    h, rows, columns = matrix.shape
    width = rows + columns
    sheared = matrix.new_zeros(h, rows, width)
    sheared.as_strided((h, rows, columns), (rows * width, width + 1, 1)).copy_(matrix)
    return sheared.sum(1)[:, :-1]
