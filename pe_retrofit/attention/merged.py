"""Merged: piecewise rotation as a few fused attention calls over ranges of keys, merged by their log-sum-exp.

Each block of queries sees a piece as an interval of keys per row. Where the intervals of all its rows share a wide
range, that range runs without a mask and only the slanted edges with one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .call import Call

BLOCK = 768
"""Query rows at a time. PyTorch's CPU kernel takes its widest tiles from 768 rows on."""

MASK = 2**23
"""Entries of a mask where positions are not plain."""


@dataclass(frozen=True)
class Part:
    """One fused call.

    Attributes:
        piece: index of the piece.
        start, stop: query rows.
        first, last: key columns, ``last`` not included.
        mask: float32 ``[b or 1, 1, rows, columns]``, 0 or the lowest number; or None.
    """

    piece: int
    start: int
    stop: int
    first: int
    last: int
    mask: Tensor | None


def merged_attention(call: Call) -> Tensor:
    """Output ``[b, h, q, d]`` of a call with pieces; no biases, scores, soft-cap, sinks or dropout."""
    b, h, q, _ = call.query.shape
    width = call.value.shape[-1]
    wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32
    output = call.query.new_zeros(b, h, q, width, dtype=wide)
    total = torch.full((b, h, q), torch.finfo(wide).min, dtype=wide, device=call.query.device)
    for part in _parts(call):
        rows, columns = slice(part.start, part.stop), slice(part.first, part.last)
        turned = call.pieces[part.piece]
        found, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            turned.query[:, :, rows],
            turned.key[:, :, columns],
            call.value[:, :, columns],
            0.0,
            False,
            attn_mask=None if part.mask is None else part.mask.to(wide),
            scale=call.scaling,
        )
        before = total[:, :, rows]
        both = torch.logaddexp(before, lse.to(wide))
        kept, new = (before - both).exp()[..., None], (lse.to(wide) - both).exp()[..., None]
        output[:, :, rows] = output[:, :, rows].mul_(kept).addcmul_(found.to(wide), new)
        total[:, :, rows] = both
    return output.to(call.query.dtype)


def _parts(call: Call) -> Iterable[Part]:
    """The fused calls; layers share those of plain positions within a forward pass."""
    memo = ("merged", call.remapped, call.query.shape[2], call.key.shape[2], call.first)
    shared: dict[Any, Any] = call.positions.shared
    if call.mask is not None:
        return _masked_parts(call)
    if memo not in shared:
        plain = call.shift is not None and _same_rows(call.query_positions) and _same_rows(call.key_positions)
        shared[memo] = _interval_parts(call) if plain else None
    return shared[memo] if shared[memo] is not None else _masked_parts(call)


def _same_rows(positions: Tensor) -> bool:
    return positions.shape[0] == 1 or bool((positions == positions[:1]).all())


def _masked_parts(call: Call) -> Iterator[Part]:
    """For padded, packed or scattered positions: every piece over all keys, with a mask; one mask at a time."""
    q = call.query.shape[2]
    lowest = torch.finfo(torch.float32).min
    block = max(64, min(BLOCK, MASK // max(1, call.query.shape[0] * call.key.shape[2])))
    for start in range(0, q, block):
        stop = min(start + block, q)
        rows = call.rows(start, stop)
        allowed = rows.allowed()
        for n, turned in enumerate(call.pieces):
            inside = turned.piece.covers(rows.query_positions, rows.key_positions)[:, None]
            if allowed is not None:
                inside = inside & allowed
            if not bool(inside.any()):
                continue
            mask = torch.zeros(inside.shape, dtype=torch.float32, device=inside.device).masked_fill_(~inside, lowest)
            if call.mask is not None and call.mask.dtype != torch.bool:
                assert rows.mask is not None
                mask = (mask + rows.mask.float()).clamp_min(lowest)
            yield Part(n, start, stop, 0, rows.key.shape[2], mask)


def _interval_parts(call: Call) -> list[Part]:
    """For plain positions: intervals of keys per row, from the bounds of the distance."""
    q, k = call.query.shape[2], call.key.shape[2]
    i = call.query_positions[0]
    origin = int(call.key_positions[0, 0])
    limit = k - 1 if call.limit is None else call.limit
    last_row = (torch.arange(q, device=i.device) + limit).clamp_max(k - 1) if call.limit is not None else i * 0 + k - 1
    masks: dict[Any, Tensor] = {}
    parts: list[Part] = []
    spans = []
    for turned in call.pieces:
        low, high = turned.piece.bounds(i)
        first = torch.zeros_like(i) if high is None else (i - high + 1 - origin).clamp_min(0)
        last = torch.minimum(i - low - origin, last_row)
        if turned.piece.before is not None:
            last = last.clamp_max(turned.piece.before - 1 - origin)
        spans.append((first, last))
    for start in range(0, q, BLOCK):
        for n, (first, last) in enumerate(spans):
            parts += _block_parts(n, start, first[start : start + BLOCK], last[start : start + BLOCK], masks)
    return parts


def _block_parts(piece: int, start: int, first: Tensor, last: Tensor, masks: dict[Any, Tensor]) -> list[Part]:
    """The calls for one block of rows, whose keys are ``first .. last`` (inclusive; empty where last < first)."""
    rows = (last >= first).nonzero()[:, 0]
    if not len(rows):
        return []
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    first, last = first[top:bottom], last[top:bottom]
    start, stop = start + top, start + bottom
    filled = last >= first
    low, high = int(first[filled].amin()), int(last[filled].amax()) + 1
    inner, outer = int(first.amax()), int(last.amin()) + 1
    if inner == low and outer == high:
        return [Part(piece, start, stop, low, high, None)]
    edges = [(low, high)]
    parts = []
    if outer - inner >= 2 * (stop - start):
        parts.append(Part(piece, start, stop, inner, outer, None))
        edges = [edge for edge in ((low, inner), (outer, high)) if edge[0] < edge[1]]
    for left, right in edges:
        from_, to = (first - left).clamp_min(0), (last - left).clamp_max(right - left - 1)
        memo = (right - left, from_.numpy(force=True).tobytes(), to.numpy(force=True).tobytes())
        if memo not in masks:
            columns = torch.arange(right - left, device=first.device)
            inside = (columns >= from_[:, None]) & (columns <= to[:, None])
            mask = torch.zeros(inside.shape, dtype=torch.float32, device=first.device)
            masks[memo] = mask.masked_fill_(~inside, torch.finfo(torch.float32).min)[None, None]
        parts.append(Part(piece, start, stop, left, right, masks[memo]))
    return parts
