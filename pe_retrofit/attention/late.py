"""Late rotation: keys are cached unrotated and rotated inside the attention.

For rotations that depend on how much text there is (dynamic NTK, LongRoPE), that decay with the distance (xPos), or
beside which an encoding needs queries and keys as they were. Queries that share a group share one rotation of the keys;
each group is one attention call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..sites import RotationEncoding
from .call import Call
from .rotate import rotate


class Fixed:
    """The same frequencies for every query: a model's own rotation, done late.

    Args:
        inv_freq: ``[n]`` radians per token.
    """

    def __init__(self, inv_freq: list[float]) -> None:
        self.frequencies = tuple(inv_freq)

    def groups(self, positions: Tensor) -> Tensor:
        """One group."""
        return torch.zeros_like(positions)

    def inv_freq(self, length: int, rope: Mapping[str, Any]) -> Tensor:
        """The frequencies, whatever the length."""
        return torch.tensor(self.frequencies, dtype=torch.float32, device="cpu")

    def amplitude(self, positions: Tensor, length: int, *, query: bool) -> Tensor | None:
        """None: 1."""
        return None


class LateRotation(nn.Module):
    """Rotates queries and keys of a call, group by group, and runs it.

    Args:
        name: of the encoding.
        encoding: gives the groups of queries, and frequencies and amplitudes for a group.
        rope: the model's own ``rope_parameters``.
        scaling: factor on cos and sin.
    """

    def __init__(self, name: str, encoding: RotationEncoding | Fixed, rope: Mapping[str, Any], scaling: float) -> None:
        super().__init__()
        self.name = name
        self.encoding = encoding
        self.rope = dict(rope)
        self.scaling = scaling
        self.native: tuple[list[float], float] | None = None
        """Frequencies and scaling of the model as it was before, while the patch is partly in force."""
        own = encoding.frequencies if isinstance(encoding, Fixed) else encoding.config
        self._memo = ("late", name, repr(sorted(self.rope.items(), key=str)), own)

    @torch.compiler.disable
    def forward(self, call: Call, attend: Callable[[Call], Tensor]) -> Tensor:
        """Output ``[b, h, q, d]``, by ``attend`` for each group."""
        groups = self.encoding.groups(call.query_positions)
        rows = groups.shape[0]
        if rows > 1 and not torch.equal(groups, groups[:1].expand_as(groups)):
            return torch.cat([self.forward(call.batch(row), attend) for row in range(call.query.shape[0])])
        parts = []
        for start, stop, length in _runs(groups[0]):
            part = call if stop - start == groups.shape[1] else call.rows(start, stop)
            parts.append(attend(self.turned(part, length)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def turned(self, call: Call, length: int) -> Call:
        """The call with queries and keys rotated for one group; it remembers how they were."""
        query = self._rotate(call.query, call.query_positions, length, call, query=True)
        key = self._rotate(call.key, call.key_positions, length, call, query=False)
        return replace(call, query=query, key=key, raw_query=call.query, raw_key=call.key)

    def _rotate(self, states: Tensor, positions: Tensor, length: int, call: Call, *, query: bool) -> Tensor:
        memo = (*self._memo, length, states.device)
        shared = call.positions.shared
        strength, scaling = call.positions.strength, self.scaling
        if memo not in shared:
            inv_freq = self.encoding.inv_freq(length, self.rope)
            if strength != 1.0 and self.native is not None:
                inv_freq = torch.lerp(torch.tensor(self.native[0], device=inv_freq.device), inv_freq, strength)
            shared[memo] = inv_freq.to(states.device)
        amplitude = self.encoding.amplitude(positions, length, query=query)
        if strength != 1.0 and self.native is not None:
            scaling = self.native[1] + strength * (scaling - self.native[1])
            amplitude = None if amplitude is None else amplitude**strength
        return rotate(states, positions, shared[memo], scaling, amplitude)


def _runs(groups: Tensor) -> Iterator[tuple[int, int, int]]:
    """``(start, stop, value)`` of stretches of equal values of a 1D tensor."""
    values, counts = torch.unique_consecutive(groups, return_counts=True)
    start = 0
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        yield start, start + count, value
        start += count
