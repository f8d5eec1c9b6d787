"""A fast forward pass whose backward pass is that of the blockwise reference, recomputed.

For kernels that give no gradient to what is added to the scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .blockwise import blockwise_attention
from .call import Call, tensors_of, with_tensors

Kernel = Callable[[Call], Tensor]


@torch.compiler.disable
def recomputed(kernel: Kernel, call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of ``kernel(call)``, differentiable with respect to tensors and parameters."""
    modules: list[nn.Module] = [*call.biases, *call.scores]
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    tensors = tensors_of(call)
    return _Recomputed.apply(call, kernel, len(tensors), *tensors, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Call, kernel: Kernel, count: int, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs, call.mask)
        ctx.call, ctx.count = replace(with_tensors(call, [t.detach() for t in inputs[:count]]), mask=None), count
        return kernel(call)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, mask = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        tensors = [t.detach().requires_grad_(n) for t, n in zip(inputs[: ctx.count], needed, strict=False)]
        parameters = inputs[ctx.count :]
        with torch.enable_grad():
            output = blockwise_attention(replace(with_tensors(ctx.call, tensors), mask=mask))
            wanted = [t for t in (*tensors, *parameters) if t.requires_grad]
            found = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
        grads = [next(found) if t.requires_grad else None for t in (*tensors, *parameters)]
        return None, None, None, *grads
