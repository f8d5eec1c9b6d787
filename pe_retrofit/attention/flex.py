"""FlexAttention: the bias as a score modification of a generated kernel. Meant for CUDA."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from .call import Call


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def flex_attention_kernel(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call without sinks and dropout.

    The bias enters as a table over distances (``[h, n]``), so learned tables get their gradient from the same kernel.
    On the CPU the uncompiled function runs, for its numbers; it holds all scores.
    """
    device = call.query.device
    q, k = call.query.shape[2], call.key.shape[2]
    qpos = call.query_positions.expand(call.query.shape[0], -1)
    kpos = call.key_positions.expand(call.query.shape[0], -1)
    low = int((qpos.amin() - kpos.amax()).item())
    high = int((qpos.amax() - kpos.amin()).item())
    table: Tensor | None = None
    if call.biases:
        distance = torch.arange(low, high + 1, device=device)
        table = torch.stack(
            [e.bias(e.prepare(distance, causal=call.causal), causal=call.causal).float() for e in call.biases]
        ).sum(0)
    additive = call.mask if call.mask is not None and call.mask.dtype != torch.bool else None
    softcap = call.softcap

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if table is not None:
            score = score + table[h, qpos[b, i] - kpos[b, j] - low]
        if additive is not None:
            score = score + _at(additive, b, i, j)
        return score

    allowed = call.allowed()
    block_mask = None
    if allowed is not None:
        allowed = allowed.expand(allowed.shape[0], 1, q, k)

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return _at(allowed, b, i, j)

        rows = call.query.shape[0] if allowed.shape[0] > 1 else None
        block_mask = create_block_mask(mask_mod, rows, None, q, k, device=str(device))
    run: Any = _compiled() if device.type == "cuda" else flex_attention
    return run(
        call.query,
        call.key,
        call.value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=call.scaling,
        enable_gqa=call.groups > 1,
    )


def _at(mask: Tensor, b: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Element of a mask ``[b or 1, 1, q, k]``; indexed by tensors only, which every torch can trace."""
    return mask[:, 0][b, i, j] if mask.shape[0] > 1 else mask[0, 0][i, j]
