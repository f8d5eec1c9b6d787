"""Toeplitz: a bias of the distance alone, as one vector per head, seen as a matrix through strides.

With the queries in reverse order the bias matrix has equal entries along its anti-diagonals, ``B[r, j] = w[r + j]``,
and such a matrix is a view of the vector: strides (1, 1). Blocks of queries go through PyTorch's fused attention with
that view as the mask; keys after the block's last query are cut off, the causal triangle is -inf in the vector.
The matrix never exists. :mod:`toeplitz_backward` adds the gradient to a learned vector.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .call import Call
from .fused import fused_attention, single_query
from .toeplitz_backward import LearnedToeplitz

BLOCK = 768
"""Query rows at a time. PyTorch's CPU kernel takes its widest tiles from 768 rows on; larger blocks waste keys."""

MASKED_BUDGET = 2**24
"""Entries of a block's mask where padding forces it to be written out."""


def toeplitz_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call with contiguous positions, no soft-cap and no sinks."""
    if call.trains_bias:
        vector = distance_vector(call)
        silent = all(encoding.silent for encoding in call.biases)

        def forward(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
            return fused_attention(call) if silent else _attend_blocks(call, query, key, value, bias)

        return LearnedToeplitz.apply(
            call.query, call.key, call.value, vector, call.mask, call.limit, call.scaling, forward
        )
    return _attend_blocks(call, call.query, call.key, call.value, distance_vector(call))


def distance_vector(call: Call) -> Tensor:
    """``w[h, t]`` with ``t = r + j``, r counted from the last query: ``[h, q + k - 1]``, -inf where causality forbids.

    float32 whatever the model's dtype, so that far positions stay apart; float64 for float64 models. Layers without
    parameters of their own share it within a forward pass.
    """
    q, k = call.query.shape[2], call.key.shape[2]
    if call.shift is None:
        raise ValueError("The Toeplitz kernel needs contiguous positions.")
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32
    shared = call.positions.shared
    fixed = all(next(encoding.parameters(), None) is None for encoding in call.biases)
    place = (q, k, call.shift, call.causal, call.query.device)
    whole = ("toeplitz", *((type(e), e.config) for e in call.biases), place, call.limit, call.mask is None, wide)
    if fixed and whole in shared:
        return shared[whole]
    vector = torch.zeros(call.query.shape[1], q + k - 1, dtype=wide, device=call.query.device)
    for encoding in call.biases:
        part = (type(encoding), encoding.config, place)
        if part not in shared:
            distance = (q - 1 + call.shift) - torch.arange(q + k - 1, device=call.query.device)
            shared[part] = encoding.prepare(distance, causal=call.causal)
        vector = vector + encoding.bias(shared[part], causal=call.causal)
    if call.mask is None and call.limit is not None:
        future = torch.arange(q + k - 1, device=vector.device) >= q + call.limit
        vector = vector.masked_fill(future, -torch.inf)
    if fixed:
        shared[whole] = vector
    return vector


def _attend_blocks(call: Call, query: Tensor, key: Tensor, value: Tensor, vector: Tensor) -> Tensor:
    vector = vector.detach().contiguous()
    q, k = query.shape[2], key.shape[2]
    if q == 1:
        near = _reached(call, 0, 1)
        mask = call.mask if call.mask is None or call.mask.shape[3] == 1 else call.mask[..., near]
        seen = replace(call, key=key[:, :, near], value=value[:, :, near])
        return single_query(seen, _masked(vector[None, :, None, near], mask))
    reverse = query.flip(2)
    mask = call.mask.flip(2) if call.mask is not None else None
    block = BLOCK
    if mask is not None:
        b, h = query.shape[:2]
        block = max(32, min(BLOCK, MASKED_BUDGET // max(1, b * h * k)))
    outputs = []
    for start in range(0, q, block):
        rows = min(block, q - start)
        near = _reached(call, start, rows)
        size = (1, vector.shape[0], rows, near.stop - near.start)
        bias = vector.as_strided(size, (0, vector.stride(0), 1, 1), start + near.start)
        if mask is not None:
            part = mask[:, :, start : start + rows] if mask.shape[2] > 1 else mask
            bias = _masked(bias, part[..., near] if part.shape[3] > 1 else part)
        outputs.append(_attend(call, reverse[:, :, start : start + rows], key[:, :, near], value[:, :, near], bias))
    return torch.cat(outputs, dim=2).flip(2)


def _reached(call: Call, start: int, rows: int) -> slice:
    """The keys that some of ``rows`` query rows attends to, the rows counted from the last query, from ``start`` on."""
    q, k = call.query.shape[2], call.key.shape[2]
    first, end = 0, k if call.limit is None else min(k, q + call.limit - start)
    reach = min((e.reach for e in call.biases if e.reach is not None), default=None)
    if reach is not None and call.shift is not None:
        last = q - 1 - start + call.shift  # the key at the place of the last of these queries
        end = max(1, min(end, last + reach))
        first = min(max(0, last - (rows - 1) - reach + 1), end - 1)
    return slice(first, end)


def _masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    lowest = torch.finfo(bias.dtype).min
    return bias.masked_fill(~mask, lowest) if mask.dtype == torch.bool else (bias + mask).clamp_min(lowest)


def _attend(call: Call, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=call.dropout, scale=call.scaling, enable_gqa=call.groups > 1
    )
