"""Watch every attention call of a model while it runs, whatever its encoding: rotation, bias, score or pieces.

The model runs through this package's attention function, which computes a layer without an encoding of ours as
transformers' ``sdpa`` does; its calls hold queries and keys as they are multiplied, with all that is added and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...attention.blockwise import block_length
from ...attention.call import Call, tensors_of, with_tensors
from ...attention.interface import OBSERVER
from ...attention.reference import attention_weights
from ...attention.within import attending
from ...patchers.family import find_host

BUDGET = 2**22
"""Attention weights held at once, over heads: 16 MB, a few times over."""


@contextmanager
def observed(model: Any, observers: Sequence[Callable[[Call], None]]) -> Iterator[None]:
    """Within, each layer's observer gets the attention calls of that layer before they run.

    Args:
        model: of a supported family.
        observers: one per layer.

    Raises:
        UnsupportedError: the model does not let its attention function be chosen.
    """
    host = find_host(model)
    with attending(host.base, host.attentions, OBSERVER, observers, "its attention cannot be inspected."):
        yield


def blocks(call: Call) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The attention of a call with one row in the batch, some queries at a time; dropout is left out.

    Yields:
        Index of the first query, attention weights ``[h, q, k]`` (float32 or wider), and which keys the queries see
        (bool ``[q, k]``); keys from ``k`` on are seen by none of them.
    """
    if call.query.dtype in (torch.bfloat16, torch.float16):  # the fused kernels, too, add up in float32
        call = with_tensors(call, [t.float() for t in tensors_of(call)])
    length, step = call.query.shape[2], block_length(call, BUDGET)
    for start in range(0, length, step):
        part = call.rows(start, min(start + step, length))
        yield int(part.first), attention_weights(part)[0], seen(part)


def seen(call: Call) -> Tensor:
    """bool ``[q, k]``: which keys some head may attend to, by the mask, by pieces and by biases of ``-inf``."""
    q, k = call.query.shape[2], call.key.shape[2]
    found = torch.ones(q, k, dtype=torch.bool, device=call.query.device)
    allowed = call.block().allowed
    if allowed is not None:
        found &= allowed[0, 0]
    if call.partial:
        covered = [p.piece.covers(call.query_positions, call.key_positions)[0] for p in call.pieces]
        found &= torch.stack(covered).any(0)
    for bias in call.biases:
        if bias.reach is not None:
            found &= bias.bias_at(call.query_positions, call.key_positions, causal=call.causal)[0].isfinite().any(0)
    return found
