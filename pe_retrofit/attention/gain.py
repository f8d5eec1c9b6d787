"""Learned gains on unrotated queries: what remains of a rotation when the distance is no longer looked at."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueryGain(nn.Module):
    """Multiplies each frequency of each head's query, as a complex number, by a learned one: ``q'_m = g_m q_m``.

    RoPE's score is ``sum_m Re(q_m conj(k_m) e^(i (i - j) theta_m))``, with the pair ``(x_m, x_(m + n))`` of the
    rotate-half layout as the complex number ``x_m``. With ``g_m`` in place of the exponential the score keeps what it
    owes to the usual distance of the keys that the head looks at. Dimensions beyond the rotated ones stay.

    Args:
        heads: ``h``.
        frequencies: ``n``, half of the rotated dimensions.
    """

    per_head = ("gain",)
    """Parameters with an entry per head, of which tensor parallelism takes some."""

    def __init__(self, heads: int, frequencies: int) -> None:
        super().__init__()
        one = torch.tensor([1.0, 0.0])
        self.gain = nn.Parameter(one.repeat(heads, frequencies, 1))

    def turn(self, query: Tensor, strength: float = 1.0) -> Tensor:
        """Queries ``[b, h, q, d]`` with their gains ``1 + strength (g - 1)``, in their dtype."""
        gain = self.gain.to(query.device, torch.promote_types(query.dtype, torch.float32))
        if strength != 1.0:
            gain = strength * gain + gain.new_tensor([1.0 - strength, 0.0])
        real, imaginary = gain[None, :, None, :, 0], gain[None, :, None, :, 1]
        width = 2 * gain.shape[1]
        first, second = query[..., :width].chunk(2, dim=-1)
        turned = torch.cat((real * first - imaginary * second, real * second + imaginary * first), dim=-1)
        turned = turned.to(query.dtype)
        return turned if width == query.shape[-1] else torch.cat((turned, query[..., width:]), dim=-1)
