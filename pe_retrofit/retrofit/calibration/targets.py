"""What the original's attention was, which the new encoding should come near to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention.call import Call
from ...attention.rotate import rotate


@dataclass(frozen=True)
class Native:
    """The rotation of a layer as the original had it; ``inv_freq`` is None without one."""

    inv_freq: Tensor | None
    scaling: float


def allowed(call: Call) -> Tensor:
    """bool ``[q, k]``."""
    allowed = call.allowed()
    size = (call.query.shape[2], call.key.shape[2])
    if allowed is None and call.mask is not None:
        allowed = call.mask > -5e3
    return torch.ones(size, dtype=torch.bool) if allowed is None else allowed[0, 0].expand(size)


def target_weights(call: Call, native: Native, rows: Tensor) -> Tensor:
    """The original's attention weights for some queries: float32 ``[h, n, k]``."""
    query, key = call.query[:, :, rows].float(), call.key.float()
    if native.inv_freq is not None:
        query = rotate(query, call.query_positions[:, rows], native.inv_freq, native.scaling)
        key = rotate(key, call.key_positions, native.inv_freq, native.scaling)
    logits = (query @ key.repeat_interleave(call.groups, 1).transpose(2, 3))[0] * call.scaling
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    logits = logits.masked_fill(~allowed(call)[rows], -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().view(-1, 1, 1).expand(*logits.shape[:2], 1)
        return torch.cat((logits, sinks), dim=-1).softmax(-1)[..., :-1]
    return logits.softmax(-1)


def within(target: Tensor, hidden: Tensor, sinks: Tensor | None) -> Tensor:
    """Targets ``[h, n, k]`` on the keys that the new encoding can see, with the same sum (with the sink) as before."""
    if not bool(hidden.any()):
        return target
    sink = 0.0 if sinks is None else 1 - target.sum(-1, keepdim=True)
    kept = target.masked_fill(hidden, 0.0)
    return kept / (kept.sum(-1, keepdim=True) + sink).clamp_min(1e-12)
