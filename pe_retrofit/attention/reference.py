"""The reference: the formula as it is written, in float64 if the inputs are, with the attention weights.

This is the one kernel that holds ``heads x q x k`` numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..sites import Block, RelativeScore
from .call import Call


def attention_weights(call: Call) -> Tensor:
    """Attention weights ``[b, h, q, k]`` of a call before dropout, in float32 or wider."""
    b, h, q, _ = call.query.shape
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32

    scores = content_scores(call).to(wide) * call.scaling
    block = call.block() if call.scores else None
    for encoding in call.scores:
        assert block is not None
        scores = scores + encoding.scores(block)
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
    if call.partial:
        covered = [p.piece.covers(call.query_positions, call.key_positions) for p in call.pieces]
        scores = scores.masked_fill(~torch.stack(covered).any(0)[:, None], lowest)
    if call.sinks is not None:
        sinks = call.sinks.to(wide).view(1, h, 1, 1).expand(b, h, q, 1)
        return torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    return scores.softmax(-1)


def eager_attention(call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[b, h, q, d]`` and attention weights ``[b, h, q, k]`` of a call."""
    b, h, q, _ = call.query.shape
    g, k = call.key.shape[1], call.key.shape[2]
    weights = attention_weights(call)
    weights = torch.nn.functional.dropout(weights, call.dropout, training=call.dropout > 0).to(call.value.dtype)
    output = torch.matmul(weights.view(b, g, call.groups * q, k), call.value).view(b, h, q, call.value.shape[-1])
    valued = [e for e in call.scores if isinstance(e, RelativeScore) and e.has_values]
    for encoding in valued:
        output = output + relative_values(encoding, weights, call.block())
    return output, weights


def content_scores(call: Call) -> Tensor:
    """``q . k`` before scaling, ``[b, h, q, k]``: each pair from the piece it lies in, where there are pieces."""
    if not call.pieces:
        return _product(call.query, call.key)
    scores: Tensor | None = None
    for turned in call.pieces:
        part = _product(turned.query, turned.key)
        inside = turned.piece.covers(call.query_positions, call.key_positions)[:, None]
        scores = part if scores is None else torch.where(inside, part, scores)
    assert scores is not None
    return scores


def _product(query: Tensor, key: Tensor) -> Tensor:
    b, h, q, d = query.shape
    g, k = key.shape[1], key.shape[2]
    folded = query.reshape(b, g, h // g * q, d)
    return torch.matmul(folded, key.transpose(2, 3)).view(b, h, q, k)


def relative_values(encoding: RelativeScore, weights: Tensor, block: Block) -> Tensor:
    """``sum_j w_ij value[i - j]``: weights are summed by row of the table first. ``[b, h, q, d]``."""
    table = encoding.value_table()
    assert table is not None
    index, _ = encoding.index(block)
    summed = weights.new_zeros(*weights.shape[:3], table.shape[1])
    summed = summed.scatter_add(-1, index[:, None].expand_as(weights), weights)
    return torch.matmul(summed, table.to(weights.dtype))
