"""RoPE on given positions, rounded as transformers rounds it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(
    states: Tensor, positions: Tensor, inv_freq: Tensor, scaling: float, amplitude: Tensor | None = None
) -> Tensor:
    """Rotate-half RoPE on the leading ``2 n`` dimensions; the others stay.

    Args:
        states: ``[b, h, t, d]``.
        positions: int64 or float64 ``[b or 1, t]``.
        inv_freq: float32 ``[n]`` radians per token.
        scaling: factor on cos and sin.
        amplitude: float32 ``[b or 1, t, n]``, a factor per frequency (xPos); None: 1.
    """
    angles = positions[..., None].float() * inv_freq
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    if amplitude is not None:
        cos, sin = cos * amplitude, sin * amplitude
    cos = torch.cat((cos, cos), dim=-1).to(states.dtype)[:, None]
    sin = torch.cat((sin, sin), dim=-1).to(states.dtype)[:, None]
    width = cos.shape[-1]
    turn, stay = states[..., :width], states[..., width:]
    first, second = turn.chunk(2, dim=-1)
    turned = turn * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if stay.shape[-1] == 0 else torch.cat((turned, stay), dim=-1)
