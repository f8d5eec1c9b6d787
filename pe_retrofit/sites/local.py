"""Input encodings that look at neighbouring tokens: convolutions and recurrences over a window."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..positions import Positions
from .encoding import C
from .input import InputEncoding


class LocalInput(InputEncoding[C]):
    """Changes each embedding by those of its neighbours, with order but without positions: ``x_i + f(.., x_i, ..)``.

    Decoders see the ``reach`` tokens before a token; encoders as many on either side. A neighbour counts only where the
    positions between it and the token are consecutive and it is no padding, so padded, packed and skipped inputs are
    right by construction. On an encoder with a position table it changes the output of the embedding block.

    Attributes:
        reach: tokens to one side that matter.
    """

    @property
    def reach(self) -> int:
        """Tokens to one side that matter."""
        raise NotImplementedError

    @property
    def sides(self) -> tuple[int, int]:
        """Tokens before and after that matter."""
        return self.reach, 0 if self.host.causal else self.reach

    def forward(self, hidden: Tensor, before: Tensor | None = None, near: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The changed embeddings.

        Args:
            hidden: ``[b, q, hidden_size]``.
            before: ``[b, n, hidden_size]``, the ``n <= reach`` embeddings before them; None: there are none.
            near: bool ``[b or 1, q, w]`` with ``w`` the sum of :attr:`sides` plus one: which of the tokens
                ``i - before .. i + after`` count for token ``i``; None: one text without padding.

        Returns:
            ``[b, q, hidden_size]`` in the dtype of ``hidden``.
        """
        left, right = self.sides
        held = 0 if before is None else before.shape[1]
        states = hidden if before is None else torch.cat((before, hidden), dim=1)
        states = torch.nn.functional.pad(states, (0, 0, left - held, right))
        if near is None:
            near = inside(hidden.shape[1], held, left, right, hidden.device)[None]
        return hidden + self.mix(states, near).to(hidden.dtype)

    def mix(self, states: Tensor, near: Tensor) -> Tensor:
        """What is added: ``[b, q, hidden_size]``.

        Args:
            states: ``[b, before + q + after, hidden_size]``; zeros where there is no token.
            near: bool ``[b or 1, q, w]``: whether ``states[:, i + c]`` counts for token ``i``.
        """
        raise NotImplementedError


def inside(length: int, held: int, left: int, right: int, device: torch.device) -> Tensor:
    """bool ``[q, w]``: which neighbours exist for ``length`` tokens that follow ``held`` others."""
    index = torch.arange(length, device=device)[:, None] + torch.arange(-left, right + 1, device=device)
    return (index >= -held) & (index < length)


def neighbours(positions: Positions, left: int, right: int) -> Tensor:
    """bool ``[b or 1, q, left + 1 + right]``: which neighbours of each token belong to its text.

    Raises:
        UnsupportedError: tokens to the right are wanted, and the pass continues a cache.
    """
    first, q = positions.first_query, positions.query.shape[1]
    if right and (not isinstance(first, int) or first):
        raise UnsupportedError(
            "This encoding looks at the tokens after each token too, and a cache holds results from before they were "
            "there. Read the whole text in one pass, with use_cache=False."
        )
    device = positions.tokens.device
    start = first if positions.held is None else positions.tokens.shape[1] - q  # a cache that forgets cuts its record
    steps = torch.arange(-left, q + right, device=device)
    exists = (steps + first >= 0) & (steps < q)
    tokens = positions.tokens[:, (steps + start).clamp_min(0).clamp_max(positions.tokens.shape[1] - 1)]
    follows = tokens.diff(dim=1) == 1  # [b, left + q + right - 1]: the token after this one is its successor
    columns: list[Tensor] = [torch.ones_like(tokens[:, left : left + q], dtype=torch.bool)]
    unbroken = columns[0]
    for distance in range(1, left + 1):
        unbroken = unbroken & follows[:, left - distance : left - distance + q]
        columns.insert(0, unbroken)
    unbroken = columns[-1]
    for distance in range(1, right + 1):
        unbroken = unbroken & follows[:, left + distance - 1 : left + distance - 1 + q]
        columns.append(unbroken)
    near = torch.stack(columns, dim=-1)
    counts = exists[None]
    if positions.real is not None:
        counts = counts & positions.real[:, (steps + first).clamp_min(0).clamp_max(positions.real.shape[1] - 1)]
    near = near & counts.unfold(1, left + right + 1, 1)
    near[..., left] = True
    return near
