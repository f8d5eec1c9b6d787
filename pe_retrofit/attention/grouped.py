"""Shifted sparse attention: groups of neighbouring tokens attend among themselves, half of the heads in shifted groups.

The first half of the heads has the groups ``0 .. g-1``, ``g .. 2g-1`` and so on; the second half has them moved by half
a group, so that what one half separates the other joins. The first and the last ``g/2`` tokens of the moved half are
groups of their own. (LongLoRA's published code rolls the sequence instead, so that there its last tokens and its first
are in one group, and the first tokens see the last ones, which lie in their future.)

Groups are folded into the batch, so that cost grows with ``n * g`` and not with ``n * n``; any kernel and encoding
runs within, on the true positions.

Source: Chen et al., LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models, 2023, arXiv 2309.12307.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..sites.partial import partial
from .call import Call, tensors_of, with_tensors

GROUP = "_position_encoding_group"
"""Attribute of an attention module: tokens per group while training; everything is seen without it."""

Ranges = tuple[tuple[int, int], ...]


def grouped(call: Call, group: int, attend: Callable[[Call], Tensor]) -> Tensor:
    """Output ``[b, h, n, d]`` of a call in groups of ``group`` tokens, computed by ``attend``.

    Raises:
        UnsupportedError: the call has a mask (padding, packing, a sliding window) or a past, is not causal, or its
            tokens are no multiple of the group.
    """
    length, half = call.query.shape[2], group // 2
    _check(call, group)
    if call.key.shape[1] % 2:
        call = _repeated(call)
    heads = call.query.shape[1]
    plain, moved = _heads(call, slice(0, heads // 2)), _heads(call, slice(heads // 2, heads))
    ends = _folded(moved, ((0, half), (length - half, length)), half, attend)
    parts = [ends[:, :, :half], ends[:, :, half:]]
    if length > group:
        parts.insert(1, _folded(moved, ((half, length - half),), group, attend))
    return torch.cat((_folded(plain, ((0, length),), group, attend), torch.cat(parts, dim=2)), dim=1)


def _check(call: Call, group: int) -> None:
    queries, keys = call.query.shape[2], call.key.shape[2]
    problem = None
    if not call.causal:
        problem = "it is for decoders, and this attention sees what comes after"
    elif queries != keys:
        problem = f"{queries} queries meet {keys} keys: a cache, or a rotation that depends on the length of the text"
    elif call.mask is not None or call.limit != 0:
        problem = "there is a mask: padding, packed documents or a sliding window. Train on rows without them"
    elif keys % group:
        problem = f"a row of {keys} tokens is no multiple of it. Choose a group that divides the length of the rows"
    elif call.query.shape[1] < 2:
        problem = "the attention has one head, and half of the heads are shifted"
    if problem is not None:
        raise UnsupportedError(f"Shifted sparse attention with group={group} cannot run: {problem}.")


def _repeated(call: Call) -> Call:
    """Each query head with a key head of its own, where an odd number of key heads cannot be halved."""
    heads, keys = call.query.shape[1], call.key.shape[1]
    tensors = [t if t.shape[1] == heads else t.repeat_interleave(heads // keys, dim=1) for t in tensors_of(call)]
    return with_tensors(call, tensors)


def _heads(call: Call, heads: slice) -> Call:
    """The call for some query heads and the key heads that belong to them."""
    every, groups = call.query.shape[1], call.groups
    keys = slice(heads.start // groups, heads.stop // groups)
    return replace(
        with_tensors(call, [t[:, heads] if t.shape[1] == every else t[:, keys] for t in tensors_of(call)]),
        biases=[partial(encoding, heads=heads) for encoding in call.biases],
        scores=[partial(encoding, heads=heads) for encoding in call.scores],
        sinks=None if call.sinks is None else call.sinks[heads],
    )


def _folded(call: Call, ranges: Ranges, size: int, attend: Callable[[Call], Tensor]) -> Tensor:
    """Output ``[b, h, m, d]`` for the tokens in some ranges, in groups of ``size`` that see nothing else."""
    b = call.query.shape[0]

    def fold(states: Tensor) -> Tensor:
        some = torch.cat([states[:, :, start:stop] for start, stop in ranges], dim=2)
        return some.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1)

    def fold_positions(positions: Tensor) -> Tensor:
        some = torch.cat([positions[:, start:stop] for start, stop in ranges], dim=1)
        return some.unflatten(1, (-1, size)).expand(b, -1, -1).flatten(0, 1)

    query_positions, key_positions = fold_positions(call.query_positions), fold_positions(call.key_positions)
    memo = ("grouped", ranges, size)  # the ranges tell the heads apart
    own = replace(
        call.positions,
        query=query_positions,
        tokens=key_positions,
        first_query=0,
        real=None,
        shared=call.positions.shared.setdefault(memo, {}),
    )
    folded = with_tensors(call, [fold(states) for states in tensors_of(call)])
    folded = replace(folded, query_positions=query_positions, key_positions=key_positions, positions=own, first=0)
    return attend(folded).unflatten(0, (b, -1)).transpose(1, 2).flatten(2, 3)
