"""Skewed: scores of the distance, ``q_i . a[i - j]`` and ``k_j . b[i - j]``, by blocks of queries.

The product of a block of queries with the rows of all its distances is ``P[r, c]``, where column ``c`` is the distance
``i - j``; what pair (r, j) needs stands one column further to the left in every row. That is a *view* of ``P`` with
strides (width - 1, 1), which goes as the mask into PyTorch's fused attention; likewise for the keys, tile by tile.
Nothing of size ``q x k x d`` exists, and no index is gathered per pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..sites import RelativeScore
from .call import Call

BUDGET = 2**23
"""Numbers held at once in the scores of a block, over batch and heads."""


@dataclass(frozen=True)
class Distances:
    """``a`` for all distances of a call, the largest first.

    Attributes:
        table: ``[h or 1, n, d]``.
        rows: int64 ``[q + k - 1]``, row of the table by distance; None where the table has a row for each.
    """

    table: Tensor
    rows: Tensor | None


def skewed_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call with contiguous positions and relative scores; no soft-cap and no sinks."""
    q = call.query.shape[2]
    tables = [_distances(encoding, call) for encoding in call.scores]
    rows = block_rows(call)
    outputs = []
    for start in range(0, q, rows):
        stop = min(start + rows, q)
        outputs.append(_attend(call.rows(start, stop), tables, q - stop))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def block_rows(call: Call) -> int:
    """Query rows at a time: a multiple of 64 within the budget, at most 512."""
    b, h = call.query.shape[:2]
    fit = BUDGET // max(1, b * h * (call.key.shape[2] + 512))
    return max(64, min(512, fit // 64 * 64))


def _distances(encoding: object, call: Call) -> Distances | None:
    assert isinstance(encoding, RelativeScore)
    assert call.shift is not None
    q, k = call.query.shape[2], call.key.shape[2]
    distance = call.shift + q - 1 - torch.arange(q + k - 1, device=call.query.device)
    rows = encoding.rows(distance, causal=call.causal)
    table = encoding.query_table(None if rows is not None else distance)
    if table is None:
        return None
    table = (table * call.scaling).to(call.query.dtype)
    if rows is not None and table.shape[1] >= q + k - 1:
        return Distances(table[:, rows], None)
    return Distances(table, rows)


def _attend(call: Call, tables: list[Distances | None], skipped: int) -> Tensor:
    """A block of queries; ``skipped``: how many of the largest distances lie beyond it."""
    parts: list[Tensor] = []
    for encoding, table in zip(call.scores, tables, strict=True):
        assert isinstance(encoding, RelativeScore)
        if table is not None:
            parts.append(_query_part(encoding, table, call, skipped))
        parts += [p for p in (_key_part(encoding, call), _content_part(encoding, call)) if p is not None]
    bias = call.bias()
    if bias is not None:
        parts.append(bias)
    added = parts[0] if len(parts) == 1 else sum(parts[1:], start=parts[0])
    return scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        attn_mask=_masked(added, call, view=len(parts) == 1 and tables[0] is not None),
        scale=call.scaling,
        enable_gqa=call.groups > 1,
    )


def _query_part(encoding: RelativeScore, distances: Distances, call: Call, skipped: int) -> Tensor:
    """``(q_i + v) . a[i - j]``, scaled: a view ``[b, h, q, k]``, -inf at future keys where no mask forbids them."""
    query = encoding.relative_query(call.block().query)
    b, h, q, _ = query.shape
    k = call.key.shape[2]
    width = q + k - 1
    part = slice(skipped, skipped + width)
    if distances.rows is None:
        product = torch.matmul(query, distances.table[:, part].transpose(1, 2))
    else:
        product = torch.matmul(query, distances.table.transpose(1, 2)).index_select(-1, distances.rows[part])
    product = product.contiguous()
    if call.mask is None and call.limit is not None:
        product[..., q + call.limit :] = -torch.inf  # column q - 1 - r + j with j > r + limit
    return product.as_strided((b, h, q, k), (h * q * width, q * width, width - 1, 1), q - 1)


def _key_part(encoding: RelativeScore, call: Call) -> Tensor | None:
    """``k_j . b[i - j]``, scaled: ``[b, h, q, k]``, by tiles of keys as long as the block of queries."""
    table = encoding.key_table()
    if table is None:
        return None
    assert call.shift is not None
    key = call.block().key
    b, g, k, d = key.shape
    h, q = call.query.shape[1:3]
    tiles = -(-k // q)
    key = pad(key, (0, 0, 0, tiles * q - k)).view(b, g, 1, tiles, q, d).expand(b, g, h // g, tiles, q, d)
    width = 2 * q - 1
    # in tile t, column c = r + (q - 1 - n) holds the pair of row r and key t q + n
    first = call.shift - (q - 1) - q * torch.arange(tiles, device=key.device)
    rows = encoding.rows(first[:, None] + torch.arange(width, device=key.device), causal=call.causal)
    assert rows is not None
    by_tile = (table * call.scaling).to(key.dtype).expand(h, -1, -1)[:, rows]  # [h, tiles, width, d]
    product = torch.matmul(key.reshape(b, h, tiles, q, d), by_tile.transpose(2, 3))
    strides = (h * tiles * q * width, tiles * q * width, q * width, width - 1, 1)
    skewed = product.as_strided((b, h, tiles, q, q), strides, q - 1)  # [..., n, r]
    return skewed.permute(0, 1, 4, 2, 3).reshape(b, h, q, tiles * q)[..., :k]


def _content_part(encoding: RelativeScore, call: Call) -> Tensor | None:
    """``u . k_j``, scaled: ``[b, h, 1, k]``."""
    content = encoding.content_bias()
    if content is None:
        return None
    block = call.block()
    product = block.per_head((content * call.scaling).to(block.key.dtype)[:, None])
    return product[..., 0][:, :, None]


def _masked(added: Tensor, call: Call, *, view: bool) -> Tensor:
    """The call's mask and what is added, in one; ``view``: causality is in there already."""
    lowest = torch.finfo(added.dtype).min
    if call.mask is not None and call.mask.dtype != torch.bool:
        return (added + call.mask).clamp_min(lowest)
    allowed = None if view and call.mask is None else call.allowed()
    return added if allowed is None else added.masked_fill(~allowed, lowest)
