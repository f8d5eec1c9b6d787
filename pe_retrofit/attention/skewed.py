"""Skewed: scores of the distance, ``q_i . a[i - j]`` and ``k_j . b[i - j]``, by blocks of queries.

The product of a block of queries with the rows of all its distances is ``P[r, c]``, where column ``c`` is the distance
``i - j``; what pair (r, j) needs stands one column further to the left in every row. That is a *view* of ``P`` with
strides (width - 1, 1), which goes as the mask into PyTorch's fused attention; likewise for the keys, tile by tile.
Nothing of size ``q x k x d`` exists, and no index is gathered per pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..sites import RelativeScore
from .call import Call

BUDGET = 2**23
"""Numbers held at once in the scores of a block, over batch and heads."""

TILE = 16
"""Keys in a tile at least."""

FEW = 16
"""Queries up to which a product that does not go through a table of all distances is cheaper."""


@dataclass(frozen=True)
class Distances:
    """``a`` for all distances of a call, the largest first.

    Attributes:
        table: ``[h or 1, n, d]``, scaled; ``[1, n, w]`` with ``map``.
        rows: int64 ``[q + k - 1]``, row of the table by distance; None where the table has a row for each.
        map: ``[h, d, w]``, to be applied to the queries first; or None.
    """

    table: Tensor
    rows: Tensor | None = None
    map: Tensor | None = None

    def product(self, query: Tensor, part: slice) -> Tensor:
        """``query . a`` for queries ``[b, h, q, d]`` and a part of the distances: ``[b, h, q, n]``."""
        if self.map is not None:
            query = torch.matmul(query, self.map.to(query.dtype))
        table = self.table if self.rows is not None else self.table[:, part]
        b, h, q, width = query.shape
        if table.shape[0] == 1:
            found = torch.matmul(query.reshape(b, h * q, width), table[0].t()).view(b, h, q, -1)
        else:
            found = torch.matmul(query, table.transpose(1, 2))
        return found if self.rows is None else found.index_select(-1, self.rows[part])


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
    if rows is None:
        basis = _basis(encoding, distance, call)
        if basis is None:
            return None
        if q <= FEW:
            return Distances((basis * call.scaling).to(call.query.dtype)[None], map=encoding.query_map())
        return Distances((encoding.mapped(basis) * call.scaling).to(call.query.dtype))
    table = encoding.query_table(None)
    if table is None:
        return None
    table = (table * call.scaling).to(call.query.dtype)
    return Distances(table[:, rows]) if table.shape[1] >= len(distance) else Distances(table, rows)


def _basis(encoding: RelativeScore, distance: Tensor, call: Call) -> Tensor | None:
    """The basis of all distances, in the queries' dtype; layers share it within a forward pass."""
    shared: dict[Any, Any] = call.positions.shared
    memo = ("basis", type(encoding), encoding.config, len(distance), call.query.shape[2], call.shift, distance.device)
    if memo not in shared:
        basis = encoding.basis(distance)
        shared[memo] = None if basis is None else basis.to(call.query.dtype)
    return shared[memo]


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
    product = distances.product(query, part).contiguous()
    if call.mask is None and call.limit is not None:
        product[..., q + call.limit :] = -torch.inf  # column q - 1 - r + j with j > r + limit
    return product.as_strided((b, h, q, k), (h * q * width, q * width, width - 1, 1), q - 1)


def _key_part(encoding: RelativeScore, call: Call) -> Tensor | None:
    """``k_j . b[i - j]``, scaled: ``[b, h, q, k]``, by tiles of keys about as long as the block of queries."""
    table = encoding.key_table()
    if table is None:
        return None
    assert call.shift is not None
    key = call.block().key
    b, g, k, d = key.shape
    h, q = call.query.shape[1:3]
    size = max(q, TILE)
    tiles = -(-k // size)
    key = pad(key, (0, 0, 0, tiles * size - k)).view(b, g, 1, tiles, size, d).expand(b, g, h // g, tiles, size, d)
    width = q + size - 1
    # in tile t, column c = r + (size - 1 - n) holds the pair of row r and key t size + n
    first = call.shift - (size - 1) - size * torch.arange(tiles, device=key.device)
    rows = encoding.rows(first[:, None] + torch.arange(width, device=key.device), causal=call.causal)
    assert rows is not None
    by_tile = (table * call.scaling).to(key.dtype).expand(h, -1, -1)[:, rows]  # [h, tiles, width, d]
    product = torch.matmul(key.reshape(b, h, tiles, size, d), by_tile.transpose(2, 3))
    strides = (h * tiles * size * width, tiles * size * width, size * width, width - 1, 1)
    skewed = product.as_strided((b, h, tiles, size, q), strides, size - 1)  # [..., n, r]
    return skewed.permute(0, 1, 4, 2, 3).reshape(b, h, q, tiles * size)[..., :k]


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
