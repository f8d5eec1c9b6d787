"""Late rotation: keys are cached unrotated and rotated inside the attention.

For rotations that depend on how much text there is (dynamic NTK, LongRoPE). Queries that share a length share one
rotation of the keys; each group of them is one attention call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..sites import RotationEncoding
from .call import Call
from .select import run


class LateRotation(nn.Module):
    """Rotates queries and keys of a call, group by group, and runs it.

    Args:
        encoding: gives the frequencies for a length and the groups of queries.
        rope: the model's own ``rope_parameters``.
        scaling: factor on cos and sin.
    """

    def __init__(self, encoding: RotationEncoding, rope: Mapping[str, Any], scaling: float) -> None:
        super().__init__()
        self.encoding = encoding
        self.rope = dict(rope)
        self.scaling = scaling

    @property
    def name(self) -> str:
        return self.encoding.config.name

    @torch.compiler.disable
    def forward(self, call: Call, kernel: str) -> Tensor:
        """Output ``[b, h, q, d]``."""
        groups = self.encoding.groups(call.query_positions)
        rows = groups.shape[0]
        if rows > 1 and not torch.equal(groups, groups[:1].expand_as(groups)):
            return torch.cat([self.forward(call.batch(row), kernel) for row in range(call.query.shape[0])])
        parts = []
        for start, stop, length in _runs(groups[0]):
            part = call if stop - start == groups.shape[1] else call.rows(start, stop)
            query = self._rotate(part.query, part.query_positions, length, part)
            key = self._rotate(part.key, part.key_positions, length, part)
            parts.append(run(replace(part, query=query, key=key), kernel))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _rotate(self, states: Tensor, positions: Tensor, length: int, call: Call) -> Tensor:
        """RoPE in rotate-half layout on the leading ``rotary_dim`` dimensions, rounded as transformers rounds it."""
        memo = (self.name, length, states.device, self.encoding.config)
        shared = call.positions.shared
        if memo not in shared:
            shared[memo] = self.encoding.inv_freq(length, self.rope).to(states.device)
        angles = positions[..., None].float() * shared[memo]
        angles = torch.cat((angles, angles), dim=-1)
        cos = (angles.cos() * self.scaling).to(states.dtype)[:, None]
        sin = (angles.sin() * self.scaling).to(states.dtype)[:, None]
        width = cos.shape[-1]
        turn, stay = states[..., :width], states[..., width:]
        first, second = turn.chunk(2, dim=-1)
        turned = turn * cos + torch.cat((-second, first), dim=-1) * sin
        return turned if stay.shape[-1] == 0 else torch.cat((turned, stay), dim=-1)


def _runs(groups: Tensor) -> Iterator[tuple[int, int, int]]:
    """``(start, stop, value)`` of stretches of equal values of a 1D tensor."""
    values, counts = torch.unique_consecutive(groups, return_counts=True)
    start = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        yield start, start + count, value
        start += count
